import asyncio
import math

import pytest

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineDead,
    EngineError,
    Generate,
    Image,
    PromptTooLong,
    Score,
    Unsupported,
)
from scalecap.stages.verify import Verify, yes_or_no
from scalecap.text.templates import Template

PROMPT = Template("Is '{{ text }}' true?")
P_YES = {"a": 0.9, "b": 0.5, "c": 0.49, "d": 0.0}


def p_yes(request):
    return P_YES[request.prompt.text.split("'")[1]]


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [(0.5, ["a", "b"]), (0.0, ["a", "b", "c", "d"]), (0.95, []), (0.49, ["a", "b", "c"])],
)
async def test_choose_keeps_from_the_threshold_up(recording_client, image, threshold, kept):
    recorder = recording_client(p_yes)
    texts, scores, refuted = await Verify(prompt=PROMPT, threshold=threshold)(
        recorder.client, texts=["a", "b", "c", "d"], image=image
    )
    assert (texts, refuted) == (kept, [text for text in P_YES if text not in kept])
    assert scores == [{"text": t, "p_yes": p, "kept": t in kept, "mass": 1.0} for t, p in P_YES.items()]
    assert recorder.texts[0] == "Is 'a' true?"
    assert all(isinstance(r, Choose) and r.prompt.image == image for r in recorder.requests)


async def test_sampled_reads_the_first_word(recording_client, image):
    replies = {"Is 'a' true?": "Yes, it is.", "Is 'b' true?": "No, his eyes are closed."}
    recorder = recording_client(lambda request: replies[request.prompt.text])
    texts, scores, _ = await Verify(prompt=PROMPT, mode="sampled")(
        recorder.client, texts=["a", "b"], image=image
    )
    assert texts == ["a"]
    assert scores == [
        {"text": "a", "p_yes": None, "kept": True, "mass": None},
        {"text": "b", "p_yes": None, "kept": False, "mass": None},
    ]
    assert all(isinstance(r, Generate) and r.prompt.image == image for r in recorder.requests)


async def test_an_ensemble_takes_the_mean_over_its_prompts(recording_client, image):
    p_yes = {"Is 'a' true?": 0.9, "See a?": 0.3, "Is 'b' true?": 0.5, "See b?": 0.4}
    recorder = recording_client(lambda request: p_yes[request.prompt.text])
    stage = Verify(prompt=PROMPT, ensemble=[Template("See {{ text }}?")])
    texts, scores, _ = await stage(recorder.client, texts=["a", "b"], image=image)
    assert texts == ["a"]
    assert [score["p_yes"] for score in scores] == pytest.approx([0.6, 0.45])
    assert len(recorder.requests) == 4


async def test_a_sampled_ensemble_needs_more_than_half(recording_client, image):
    recorder = recording_client(lambda request: "Yes." if "'" in request.prompt.text else "No.")
    for more, kept in ((["{{ text }}?"], []), (["'{{ text }}'?", "{{ text }}?"], ["a"])):
        stage = Verify(prompt=PROMPT, ensemble=[Template(each) for each in more], mode="sampled")
        assert (await stage(recorder.client, texts=["a"], image=image))[0] == kept


async def test_a_reply_that_is_neither_is_not_yes_and_is_flagged(recording_client, image):
    recorder = recording_client(
        lambda request: Chosen((0.0, 0.0), mass=0.0) if "'a'" in request.prompt.text else 0.9
    )
    texts, scores, _ = await Verify(prompt=PROMPT)(recorder.client, texts=["a", "b"], image=image)
    assert texts == ["b"]
    assert scores[0] == {"text": "a", "p_yes": None, "kept": False, "mass": 0.0}
    assert recorder.flags == ["unanswered"]


async def test_no_text_makes_no_request(recording_client, image):
    recorder = recording_client(p_yes)
    assert await Verify(prompt=PROMPT)(recorder.client, texts=[], image=image) == ([], [], [])
    assert recorder.requests == []


async def test_equal_texts_are_checked_once_and_kept_in_order(recording_client, image):
    recorder = recording_client(p_yes)
    texts, scores, _ = await Verify(prompt=PROMPT)(recorder.client, texts=["a", "c", "a"], image=image)
    assert texts == ["a", "a"]
    assert len(scores) == 3
    assert len(recorder.requests) == 2


async def test_the_first_failure_in_order_is_raised_once_all_have_ended(recording_client, image):
    ended = []

    async def fail(request):
        await asyncio.sleep(0.02 if "'a'" in request.prompt.text else 0)
        ended.append(request.prompt.text)
        raise EngineError(request.prompt.text)

    with pytest.raises(EngineError, match="Is 'a' true"):
        await Verify(prompt=PROMPT)(recording_client(fail).client, texts=["a", "b"], image=image)
    assert ended == ["Is 'b' true?", "Is 'a' true?"]


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="expected a probability"):
        Verify(prompt=PROMPT, threshold=threshold)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("yes", True),
        ("YES.", True),
        ("  **Yes**, clearly", True),
        ("_Yes_", True),
        ("no", False),
        ("No, his eyes are closed", False),
        ("Yesterday", None),
        ("I say yes", None),
        ("Ja.", None),
        ("", None),
    ],
)
def test_the_first_word_is_the_answer(reply, answer):
    assert yes_or_no(reply) is answer


@pytest.mark.parametrize(
    ("mass", "p", "known"),
    [(0.1, 0.7, 0.1), (0.0999, None, 0.0999), (1e-9, None, 1e-9), (math.nan, 0.7, None)],
)
async def test_a_small_mass_is_not_an_answer(recording_client, image, mass, p, known):
    """A model about to write something else, such as its reasoning, has not answered."""
    recorder = recording_client(lambda _: Chosen((0.7, 0.3), mass), min_mass=0.1)
    texts, scores, _ = await Verify(prompt=PROMPT)(recorder.client, texts=["a"], image=image)
    assert scores == [{"text": "a", "p_yes": p, "kept": p is not None, "mass": known}]
    assert texts == (["a"] if p else [])
    assert recorder.flags == ([] if p else ["unanswered"])


async def test_what_was_not_answered_is_not_refuted(recording_client, image):
    recorder = recording_client(lambda r: Chosen((0.0, 0.0), 0.0) if "'a'" in r.prompt.text else 0.1)
    assert (await Verify(prompt=PROMPT)(recorder.client, texts=["a", "b"], image=image))[2] == ["b"]
    replies = {"Is 'a' true?": "No.", "Is 'b' true?": "Yes.", "Is 'c' true?": "Ja."}
    recorder = recording_client(lambda r: replies[r.prompt.text])
    stage = Verify(prompt=PROMPT, mode="sampled")
    texts, _, refuted = await stage(recorder.client, texts=["a", "b", "c"], image=image)
    assert (texts, refuted, recorder.flags) == (["b"], ["a"], ["unanswered"])


async def test_a_text_is_checked_against_its_own_view(recording_client, image):
    view = Image("view", image.pixels)
    recorder = recording_client(lambda r: 0.9 if r.prompt.image is view else 0.2)
    stage = Verify(prompt=PROMPT)
    texts, scores, refuted = await stage(recorder.client, texts=["a", "b"], image=image, views=[view, None])
    assert (texts, refuted) == (["a"], ["b"])
    before = [{"text": text, "p_yes": 0.6, "kept": True, "mass": 1.0} for text in ("a", "b")]
    again = recording_client(lambda r: 0.1)
    texts, scores, refuted = await stage(
        again.client, texts=["a", "b"], image=image, views=[view, None], before=before
    )
    assert (texts, refuted, scores[1], len(again.requests)) == (["b"], ["a"], before[1], 1)
    with pytest.raises(ValueError, match="got 1 views for 2 texts"):
        await stage(recorder.client, texts=["a", "b"], image=image, views=[view])
    with pytest.raises(ValueError, match="did not read the same texts"):
        await stage(recorder.client, texts=["a", "c"], image=image, before=before)


async def test_the_threshold_holds_for_what_an_earlier_check_answered_too(recording_client, image):
    recorder = recording_client(p_yes)
    before: list[dict[str, object]] = [
        {"text": "a", "p_yes": 0.95, "kept": True, "mass": 1.0},
        {"text": "b", "p_yes": 0.6, "kept": True, "mass": 1.0},
        {"text": "c", "p_yes": None, "kept": False, "mass": 0.01},
        {"text": "d", "p_yes": None, "kept": True, "mass": None},
    ]
    stage = Verify(prompt=PROMPT, threshold=0.9)
    texts, scores, refuted = await stage(
        recorder.client, texts=["a", "b", "c", "d"], image=image, views=[None] * 4, before=before
    )
    assert (texts, refuted, recorder.requests) == (["a", "d"], ["b"], [])
    assert scores[1] == before[1] | {"kept": False}


BATCH = Template("Which are true?\n{{ texts }}")


async def test_several_texts_are_checked_in_one_request(recording_client, image):
    def answer(request):
        if isinstance(request, Generate):
            return "1. yes\n2. no" if "a" in request.prompt.text.splitlines()[1] else "1. no"
        if isinstance(request, Choose):
            return 0.8
        return math.log(0.9)  # a word

    recorder = recording_client(answer)
    stage = Verify(prompt=PROMPT, batch=2, batch_prompt=BATCH)
    texts, scores, refuted = await stage(recorder.client, texts=["a", "b", "c"], image=image)
    assert (texts, refuted) == (["a", "c"], ["b"])
    assert [score["p_yes"] for score in scores] == pytest.approx([0.9, 0.1, 0.8])
    assert sorted(recorder.texts) == ["Is 'c' true?", *["Which are true?\n1. a\n2. b"] * 2]
    written = next(request for request in recorder.requests if isinstance(request, Score))
    assert written.text == "1. yes\n2. no"
    assert all(request.prompt.image == image for request in recorder.requests)
    assert recorder.flags == []


@pytest.mark.parametrize("reply", ["1. Yes\n2. No", "1. **yes**\n2. **no**", "Sure:\n1) YES, it is.\n2) NO"])
async def test_verdicts_are_scored_in_the_models_own_spelling(recording_client, image, reply):
    def answer(request):
        if isinstance(request, Generate):
            return reply
        return math.log(0.9 if reply.startswith(request.text) else 0.01)  # a word

    recorder = recording_client(answer)
    stage = Verify(prompt=PROMPT, batch=2, batch_prompt=BATCH)
    texts, scores, refuted = await stage(recorder.client, texts=["a", "b"], image=image)
    assert (texts, refuted, recorder.flags) == (["a"], ["b"], [])
    assert [score["p_yes"] for score in scores] == pytest.approx([0.9, 0.1])


async def test_a_batch_without_a_verdict_for_each_text_is_checked_one_by_one(recording_client, image):
    recorder = recording_client(lambda r: "1. yes" if isinstance(r, Generate) else p_yes(r))
    stage = Verify(prompt=PROMPT, batch=3, batch_prompt=BATCH)
    texts, _, refuted = await stage(recorder.client, texts=["a", "b", "c"], image=image)
    assert (texts, refuted, recorder.flags) == (["a", "b"], ["c"], ["unbatched"])

    def too_long(request):
        if isinstance(request, Generate):
            raise PromptTooLong(9, 8)
        return p_yes(request)

    recorder = recording_client(too_long)
    assert (await stage(recorder.client, texts=["a", "d"], image=image))[0] == ["a"]
    assert recorder.flags == ["unbatched"]


@pytest.mark.parametrize("error", [Unsupported("the server can't score a given text"), PromptTooLong(9, 8)])
async def test_where_a_reply_cannot_be_scored_the_words_decide(recording_client, image, error):
    def answer(request):
        if isinstance(request, Score):
            raise error
        return "1. yes\n2. no"

    recorder = recording_client(answer)
    stage = Verify(prompt=PROMPT, batch=2, batch_prompt=BATCH)
    texts, scores, refuted = await stage(recorder.client, texts=["a", "b"], image=image)
    assert (texts, refuted, recorder.flags) == (["a"], ["b"], ["unscored"])
    assert [score["p_yes"] for score in scores] == [None, None]


@pytest.mark.parametrize("error", [EngineDead("gone"), EngineError("no answer within 600 seconds")])
async def test_a_row_whose_scoring_fails_for_now_can_be_done_again(recording_client, image, error):
    def answer(request):
        if isinstance(request, Score):
            raise error
        return "1. yes\n2. no"

    recorder = recording_client(answer)
    with pytest.raises(EngineError, match=str(error)):
        await Verify(prompt=PROMPT, batch=2, batch_prompt=BATCH)(
            recorder.client, texts=["a", "b"], image=image
        )
    assert recorder.flags == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"batch": 2}, "batch requires `batch_prompt:"),
        (
            {"batch": 2, "batch_prompt": BATCH, "mode": "sampled"},
            "can't be combined with `mode:",
        ),
        (
            {"batch": 2, "batch_prompt": BATCH, "ensemble": [PROMPT]},
            "can't be combined with `mode:",
        ),
    ],
)
def test_invalid_batch_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Verify(prompt=PROMPT, **settings)


async def test_of_an_ensemble_every_prompt_must_be_answered(recording_client, image):
    masses = {"Is 'a' true?": 0.9, "See a?": 0.01}
    recorder = recording_client(lambda request: Chosen((1.0, 0.0), masses[request.prompt.text]), min_mass=0.1)
    ensemble = [Template("See {{ text }}?")]
    _, scores, _ = await Verify(prompt=PROMPT, ensemble=ensemble)(recorder.client, texts=["a"], image=image)
    assert scores == [{"text": "a", "p_yes": None, "kept": False, "mass": 0.01}]
