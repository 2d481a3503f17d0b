import json
import random
from dataclasses import fields

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

from scalecap.metrics.scenes import scenes
from scalecap.scenes.careless import careless_caption
from scalecap.scenes.claims import Claim, facts
from scalecap.scenes.grammar import read, sentences
from scalecap.scenes.kinds import KINDS, PLACES
from scalecap.scenes.statements import LATE
from scalecap.scenes.themes import THEMES
from scalecap.scenes.train import lessons, texts
from scalecap.scenes.train.course import training_prompts
from scalecap.scenes.views import draw_view
from scalecap.scenes.world import sample
from scalecap.stages.choose import NONE

SEEDS = range(40)


@pytest.fixture(scope="module")
def prompts():
    return training_prompts()


def score(text: str, truth) -> dict:
    return scenes({"it": text}, truth)["it"]


def test_careless_captions_err_towards_what_is_usual():
    rng, measured, invented, usual = random.Random(0), [], 0, 0
    for seed in range(500):
        truth = sample(seed).truth()
        text = careless_caption(truth, rng)
        measured.append(score(text, truth))
        there = {thing["kind"] for thing in truth["things"]}
        extra = {claim.kind for claim in read(text) if claim.kind} - there
        invented += len(extra)
        usual += len(extra & set(THEMES[truth["theme"]].kinds))
    wrong = sum(each["wrong"] for each in measured) / sum(each["precision"]["of"] for each in measured)
    assert 0.15 < wrong < 0.35
    assert invented > 250
    assert usual == invented
    assert all(each["unread"]["count"] == 0 for each in measured)


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_true_and_checks_right(seed, prompts):
    rng, truth = random.Random(seed), sample(seed).truth()
    for lesson in lessons.check(truth, prompts, rng, LATE):
        ((text, true),) = lesson.judged
        assert lesson.reply == ("yes" if true else "no")
        assert (score(text, truth)["wrong"] == 0) == true
    for draw in (lessons.looks, lessons.place):
        measured = score(draw(truth, prompts, rng).reply, truth)
        assert measured["true"] > 0
        assert measured["wrong"] == measured["unread"]["count"] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_verdicts_and_choices_name_what_is_true(seed, prompts):
    rng, truth = random.Random(seed), sample(seed).truth()
    lesson = lessons.verdicts(truth, prompts, rng, LATE)
    verdicts = [line.split(". ")[1] for line in lesson.reply.split("\n")]
    assert verdicts == ["yes" if true else "no" for _, true in lesson.judged]
    assert all(f"{n}. {text}" in lesson.prompt for n, (text, _) in enumerate(lesson.judged, 1))
    lesson = lessons.choice(truth, prompts, rng)
    options = dict(line.split(". ", 1) for line in lesson.prompt.split("\n")[1:-1])
    right = [letter for letter, text in options.items() if text != NONE and not score(text, truth)["wrong"]]
    assert (right or [max(options)]) == [lesson.reply]
    assert options[max(options)] == NONE


@pytest.mark.parametrize("seed", SEEDS)
def test_what_else_there_is_completes_what_is_known(seed, prompts):
    truth = sample(seed).truth()
    lesson = lessons.missed(truth, prompts, random.Random(seed))
    _, known = lesson.prompt.split("\n", 1)
    named = {claim.kind for line in known.split("\n") for claim in read(line)}
    there = {thing["kind"] for thing in truth["things"]}
    if lesson.reply == lessons.NOTHING_ELSE:
        assert named == there
    else:
        assert {claim.kind for claim in read(lesson.reply)} == there - named
        assert score(lesson.reply, truth)["wrong"] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_json_lists_everything_in_the_scene(seed, prompts):
    truth = sample(seed).truth()
    reply = json.loads(lessons.structured(truth, prompts, random.Random(seed)).reply)
    assert [each["name"] for each in reply["objects"]] == [thing["kind"] for thing in truth["things"]]
    assert [each["place"] for each in reply["objects"]] == [thing["place"] for thing in truth["things"]]


@pytest.mark.parametrize("seed", SEEDS)
def test_fusing_and_collecting_add_nothing_of_their_own(seed, prompts):
    rng, truth = random.Random(seed), sample(seed).truth()
    for draw in (texts.joining, texts.collecting):
        lesson = draw(truth, prompts, rng)
        for sentence in lesson.reply.replace(". ", ".\n").split("\n"):
            assert sentence in lesson.prompt or sentence.startswith("Describe more details about")


@pytest.mark.parametrize("seed", SEEDS)
def test_each_thing_is_listed_once(seed, prompts):
    lesson = texts.listing(sample(seed).truth(), prompts, random.Random(seed))
    lines = lesson.reply.split("\n")
    assert len(lines) == len(set(lines))
    assert all(line.startswith("Describe more details about the ") for line in lines)
    named = {claim.kind for claim in read(lesson.prompt.split(": ", 1)[1]) if claim.kind}
    assert len(lines) == len(named)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sentence_is_taken_apart_into_single_facts(seed, prompts):
    truth = sample(seed).truth()
    lesson = texts.decomposing(truth, prompts, random.Random(seed))
    original = read(lesson.prompt.removeprefix("Take apart: "))
    apart = sentences(lesson.reply)
    for (claim,) in apart:
        fields = ("size", "colour", "parts", "facing", "place", "beside", "ground")
        assert sum(bool(getattr(claim, name)) for name in fields) <= 1
    one = [set(facts(claim, truth)) for claim in original]
    assert set().union(*one) == {fact for claims in apart for claim in claims for fact in facts(claim, truth)}


@pytest.mark.parametrize("seed", SEEDS)
def test_correcting_leaves_out_what_is_wrong_and_keeps_the_rest(seed, prompts):
    truth = sample(seed).truth()
    lesson = texts.correcting(truth, prompts, random.Random(seed))
    caption, refuted = lesson.prompt.removeprefix("Leave out what is wrong:\n").split("\nWrong:\n")
    before, after, wrong = (
        {fact[:3] for claim in read(t) for fact in facts(claim, truth)}
        for t in (caption, lesson.reply, refuted)
    )
    assert after < before
    details = {fact for fact in wrong if fact[0] not in ("object", "count")}
    assert not after & details
    kinds = {claim.kind for line in refuted.split("\n") for claim in read(line) if line.startswith("There ")}
    assert {fact for fact in before - after if fact[1] not in kinds} == {
        fact for fact in details if fact[1] not in kinds
    }
    assert not {fact for fact in after if fact[1] in kinds}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_box_is_the_place_of_the_thing(seed, prompts):
    truth = sample(seed).truth()
    lesson = lessons.region(truth, prompts, random.Random(seed))
    (claim,) = read(lesson.prompt.removeprefix("Where is it? ").removesuffix(" Answer with a box."))
    (thing,) = [thing for thing in truth["things"] if thing["kind"] == claim.kind]
    left, top, right, bottom = json.loads(lesson.reply)["box"]
    assert PLACES[3 * round(top / 333) + round(left / 333)] == thing["place"]
    assert right - left in (333, 334)
    assert bottom - top in (333, 334)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sentence_is_varied_in_one_detail_at_a_time(seed, prompts):
    lesson = texts.varying(sample(seed).truth(), prompts, random.Random(seed))
    (claim,) = read(lesson.prompt.removeprefix("Say it otherwise: "))
    others = [claim for line in lesson.reply.split("\n") if line for claim in read(line)]
    assert len(set(others)) == len(others) <= 8
    for other in others:
        changed = [
            field.name for field in fields(Claim) if getattr(other, field.name) != getattr(claim, field.name)
        ]
        assert len(changed) == 1


def test_things_are_named(prompts):
    truth = sample(3).truth()
    rng = random.Random(0)
    titles = {lessons.title(thing) for thing in truth["things"]}
    assert {lessons.name_one(truth, prompts, rng).reply for _ in range(60)} == titles
    lesson = texts.naming(truth, prompts, rng)
    named = {claim.kind for claim in read(lesson.prompt) if claim.kind}
    assert {claim.kind for line in lesson.reply.split("\n") for claim in read(line)} == named


def test_lessons_of_a_window_are_about_what_it_shows(prompts):
    windows = [view for view in (draw_view(seed, zoomed=1.0) for seed in range(60)) if not view.whole]
    assert len(windows) > 30
    for view in windows:
        truth = view.truth()
        there = {thing["kind"] for thing in truth["things"]}
        assert there <= {thing.kind for thing in view.scene.things}
        for lesson in lessons.about_scene(truth, prompts, random.Random(1), LATE):
            for text, true in lesson.judged:
                if true:
                    assert {claim.kind for claim in read(text) if claim.kind} <= there


def test_every_kind_belongs_to_a_theme():
    assert {kind for theme in THEMES.values() for kind in theme.kinds} == set(KINDS)
