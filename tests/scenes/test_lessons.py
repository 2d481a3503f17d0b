import random

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

from scalecap.metrics.scenes import scenes
from scalecap.scenes import lessons
from scalecap.scenes.train import taught_prompts
from scalecap.scenes.world import sample


@pytest.fixture(scope="module")
def prompts():
    return taught_prompts()


def test_careless_captions_are_wrong_now_and_then():
    rng, told = random.Random(0), []
    for seed in range(500):
        truth = sample(seed).truth()
        told.append(scenes({"it": lessons.careless_caption(truth, rng)}, truth)["it"])
    wrong = sum(each["wrong"] for each in told) / sum(each["precision"]["of"] for each in told)
    assert 0.15 < wrong < 0.3
    assert all(each["unread"]["count"] == 0 for each in told)


@pytest.mark.parametrize("seed", range(40))
def test_answers_are_true_and_checks_right(seed, prompts):
    rng, truth = random.Random(seed), sample(seed).truth()
    drawn = lessons.about_scene(truth, prompts, rng, checks=6, share=lessons.Curriculum(0.3, 0.5))
    checks, answers = drawn[:6], drawn[6:]
    assert [check.reply for check in checks] == ["yes", "no"] * 3
    answers = [lesson for lesson in answers if lesson.weight != lessons.CAPTIONED]
    assert [answer.weight for answer in answers].count(lessons.PLACED) == 2
    for answer in answers:
        told = scenes({"it": answer.reply}, truth)["it"]
        assert told["true"] > 0
        assert told["wrong"] == told["unread"]["count"] == 0


@pytest.mark.parametrize("seed", range(40))
def test_fusing_and_collecting_add_nothing_of_their_own(seed, prompts):
    rng, truth = random.Random(seed), sample(seed).truth()
    for draw in (lessons.joining, lessons.collecting):
        lesson = draw(truth, prompts, rng)
        for sentence in lesson.reply.replace(". ", ".\n").split("\n"):
            assert sentence in lesson.prompt or sentence.startswith("Describe more details about")


@pytest.mark.parametrize("seed", range(40))
def test_each_thing_is_listed_once(seed, prompts):
    lesson = lessons.listing(sample(seed).truth(), prompts, random.Random(seed))
    lines = lesson.reply.split("\n")
    assert len(lines) == len(set(lines))
    assert all(line.startswith("Describe more details about the ") for line in lines)
