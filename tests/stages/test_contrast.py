import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.engines.base import Score, Scored, Token
from scalecap.stages.contrast import Contrast, find_gaps
from scalecap.text.templates import Template

PROMPT = Template("Describe the picture.")


def by_word(likelier: dict[str, float], logits: bool = False):
    """A script that makes some words likelier with the image, each by its value."""

    def answer(request):
        assert isinstance(request, Score)
        tokens, end = [], 0
        for piece in request.text.split(" "):
            start, end = end, end + len(piece) + bool(tokens)
            gain = likelier.get(piece.strip(".,\n"), 0.0) if request.prompt.image else 0.0
            tokens.append(Token(start, end, -1.0 + gain, 5.0 + 10 * gain if logits else None))
        return Scored(tuple(tokens))

    return answer


async def rate(recording_client, image, script, texts, **settings):
    recorder = recording_client(script)
    questions = settings.pop("questions", None)
    prompt = None if questions else PROMPT
    kept, scores = await Contrast(prompt=prompt, **settings)(
        recorder.client, texts=texts, image=image, questions=questions
    )
    return recorder, kept, scores


async def test_a_caption_is_rated_whole_and_reported_by_sentence(recording_client, image):
    caption = "A dog runs, it is near a cat. A tree stands there."
    likelier = {"dog": 2.0, "cat": -0.5, "near": -1.0, "it": 9.0, "tree": -3.0, "stands": -0.25}
    recorder, kept, scores = await rate(recording_client, image, by_word(likelier), caption)
    assert [r.prompt.image for r in recorder.requests] == [image, None]
    assert {r.text for r in recorder.requests} == {caption}
    assert {r.prompt.text for r in recorder.requests} == {"Describe the picture."}
    assert kept == ["A dog runs."]
    assert scores[0]["text"] == "A dog runs, it is near a cat."
    assert scores[0]["clauses"] == [
        {"text": "A dog runs,", "gap": 2.0, "kept": True},
        {"text": " it is near a cat.", "gap": -0.5, "kept": False},  # "it" is not a content word
    ]
    assert [score["kept"] for score in scores] == [True, False]
    assert "".join(t["text"] for score in scores for t in score["tokens"]) == caption
    assert scores[1]["tokens"][1] == {"text": " tree", "gap": -3.0}


@pytest.mark.parametrize("texts", ["A dog. A cat.", ["A dog.", "A cat."]])
async def test_what_the_budget_leaves_out_is_not_checked(recording_client, image, texts):
    recorder = recording_client(by_word({}))
    recorder.client.allowed = lambda costs: 0
    kept, scores = await Contrast(prompt=PROMPT)(recorder.client, texts=texts, image=image)
    assert (kept, recorder.requests) == ([], [])
    assert [(score["text"], score["checked"]) for score in scores] == [("A dog.", False), ("A cat.", False)]


async def test_answers_are_rated_each_under_its_question(recording_client, image):
    script = by_word({"brown": 1.0, "left": -1.0})
    texts, questions = ["It is brown.", "It is left. Dr. Who is brown."], ["How?", "Where?"]
    recorder, kept, scores = await rate(recording_client, image, script, texts, questions=questions)
    assert kept == ["It is brown.", "Dr. Who is brown."]
    assert [score["text"] for score in scores] == texts
    assert [r.prompt.text for r in recorder.requests] == ["How?", "How?", "Where?", "Where?"]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, ["A dog, of the, runs."]),
        ({"threshold": 1.0}, []),
        ({"threshold": 0.9}, ["A dog, of the."]),
        ({"words": "all"}, ["A dog, of the."]),
        ({"values": "logprobs", "threshold": 0.05}, ["A dog, of the, runs."]),
    ],
)
async def test_settings(recording_client, image, settings, kept):
    gains = {"dog": 1.0, "runs": 0.1} if settings != {"words": "all"} else {"A": 0.1, "the": 0.1, "runs": -1}
    _, found, _ = await rate(recording_client, image, by_word(gains), "A dog, of the, runs.", **settings)
    assert found == kept


@pytest.mark.parametrize(("pool", "kept"), [("max", ["A small cat runs."]), ("mean", [])])
async def test_one_likelier_word_does_not_carry_a_mean(recording_client, image, pool, kept):
    gains = {"small": 1.0, "cat": -2.0, "runs": 0.1}
    _, found, [score] = await rate(recording_client, image, by_word(gains), "A small cat runs.", pool=pool)
    assert found == kept
    assert score["clauses"][0]["gap"] == pytest.approx({"max": 1.0, "mean": -0.3}[pool])


async def test_a_sentence_with_nothing_to_rate_is_dropped_and_a_clause_goes_with_the_others(
    recording_client, image
):
    _, kept, scores = await rate(
        recording_client, image, by_word({"dog": 1.0}), "And so, of the. With it, a dog is there."
    )
    assert kept == ["With it, a dog is there."]
    assert scores[1]["clauses"][0] == {"text": " With it,", "gap": None, "kept": True}


async def test_no_threshold_keeps_everything_and_makes_no_request(recording_client, image):
    recorder, kept, scores = await rate(
        recording_client, image, by_word({}), "A dog, a cat. A tree", threshold=None
    )
    assert kept == ["A dog, a cat.", "A tree"]
    assert recorder.requests == []
    assert scores[0]["tokens"] == []


@pytest.mark.parametrize("text", ["", " \n", []])
async def test_no_text_makes_no_request(recording_client, image, text):
    recorder, kept, scores = await rate(recording_client, image, by_word({}), text)
    assert (kept, recorder.requests) == ([], [])
    assert all(not score["kept"] for score in scores)


async def test_raw_logits_are_used_where_available(recording_client, image):
    for values, gap in (("auto", 10.0), ("logits", 10.0), ("logprobs", 1.0)):
        _, _, scores = await rate(
            recording_client, image, by_word({"dog": 1.0}, True), "A dog.", values=values
        )
        assert scores[0]["clauses"][0]["gap"] == gap
    _, _, scores = await rate(recording_client, image, by_word({"dog": 1.0}), "A dog.")
    assert scores[0]["clauses"][0]["gap"] == 1.0
    with pytest.raises(ValueError, match="values: logprobs"):
        await rate(recording_client, image, by_word({}), "A dog.", values="logits")


def test_an_engine_may_return_logits_only():
    alone = Scored((Token(0, 2, float("nan"), 3.0),))
    assert find_gaps(alone, alone, "auto") == [(0, 2, 0.0)]
    with pytest.raises(ValueError, match="values: logits"):
        find_gaps(alone, alone, "logprobs")


def test_tokens_that_do_not_fit_are_an_error():
    one, two = Scored((Token(0, 2, -1.0),)), Scored((Token(0, 1, -1.0), Token(1, 2, -1.0)))
    with pytest.raises(ValueError, match="tokenized the text differently"):
        find_gaps(one, two, "auto")


async def test_one_question_per_text_is_required(recording_client, image):
    with pytest.raises(ValueError, match="one question per text, got 1 for 2 texts"):
        await rate(recording_client, image, by_word({}), ["a", "b"], questions=["a?"])


def test_the_check_requires_a_prompt_or_questions():
    assert "write `prompt:" in (Contrast().check(["texts"]) or "")
    assert "expected either" in (Contrast(prompt=PROMPT).check(["texts", "questions"]) or "")
    assert Contrast(prompt=PROMPT).check(["texts"]) is None
    assert Contrast().check(["texts", "questions"]) is None


@given(st.text(max_size=50), st.integers(0, 9))
def test_whatever_the_tokens_the_record_covers_the_text(text, seed):
    """Tokens as byte-level BPE may cut them: across words, marks and white space."""
    dice = random.Random(seed)
    cuts = sorted({0, len(text), *(dice.randrange(len(text) + 1) for _ in range(len(text) // 2))})
    spans = list(itertools.pairwise(cuts))
    seen, unseen = (Scored(tuple(Token(a, b, dice.gauss(0, 1)) for a, b in spans)) for _ in range(2))
    gaps = find_gaps(seen, unseen, "auto")
    stage = Contrast(prompt=PROMPT)
    from scalecap.text.segmentation import sentences

    whole = sentences(text)
    records = [stage._record(text, [span], gaps) for span in whole]
    assert "".join(clause["text"] for record in records for clause in record["clauses"]) == text
    assert "".join(token["text"] for record in records for token in record["tokens"]) == text
    for record in records:
        characters = iter(record["text"])
        assert all(character in characters for character in record["remains"])
        assert record["kept"] == bool(record["remains"])
        assert all(clause["kept"] for clause in record["clauses"] if (clause["gap"] or 0) > 0)
