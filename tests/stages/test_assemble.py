from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.stages.assemble import Assemble, distinct


def block(*texts):
    return {"details": [{"text": text} for text in texts]}


async def test_details_follow_their_sentence_and_repeats_are_left_out(recording_client):
    recorder = recording_client(lambda _: "x")
    caption = await Assemble()(
        recorder.client,
        sentences=["The picture shows two crabs at the top.", "There is a cake."],
        blocks=[block("The crabs are orange. The two crabs are at the top."), block("A cake is there.")],
        details=["The sky is dark.", "There is a cake."],
    )
    assert caption == (
        "The picture shows two crabs at the top. The crabs are orange. There is a cake. The sky is dark."
    )
    assert (recorder.requests, recorder.flags) == ([], [])


async def test_nothing_falls_back(recording_client):
    recorder = recording_client(lambda _: "x")
    assert await Assemble()(recorder.client, sentences=[], initial="First.") == "First."
    assert await Assemble()(recorder.client, sentences=[" "]) == ""
    assert recorder.flags == ["fallback", "fallback"]


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["A cup on a table.", "A cup under a table."], 2),
        (["A man holds a dog.", "A dog holds a man."], 2),
        (["A dog.", "The dog's."], 1),
        (["A dog is not black.", "A dog is black."], 2),
        (["The dog sits beside a red car.", "The dog is red."], 2),
        (["The picture shows two crabs at the top.", "The two crabs are at the top."], 1),
        (["It is 3.5 m high.", "It is 3.6 m high."], 2),
        (["一只狗。一只狗。", "一只猫。"], 2),
        (["!", "!", "?"], 2),
        (["A teddy bear sits.", "There is a bear."], 2),
        (["A dog house stands there.", "There is a dog.", "A dog."], 2),
        (["There is no dog.", "There is a dog."], 2),
        (["There is no dog on the grass.", "There is no dog."], 2),
        (["The lamp is on the table.", "The lamp is on."], 2),
        (["The lamp is on.", "The lamp is on."], 1),
        (["The picture is set against a wall.", "The picture is set against."], 1),
        (["A man without a hat.", "There is a hat."], 2),
        (["The sign isn’t red.", "The sign is red."], 2),
        (["A red bus passes a brown dog.", "There is a red bus.", "There is a dog."], 1),
    ],
)
def test_what_counts_as_a_repeat(texts, left):
    assert len(list(distinct(texts))) == left


@given(st.lists(st.text(max_size=30), max_size=6))
def test_the_first_of_each_stays_and_nothing_is_made_up(texts):
    kept = list(distinct(texts))
    assert all(any(sentence in text for text in texts) for sentence in kept)
    assert list(distinct(kept)) == kept
    assert bool(kept) == any(text.strip() for text in texts)


@pytest.mark.parametrize(
    ("settings", "caption", "flags"),
    [
        ({}, "A dog. A cat sits. A cow.", []),
        ({"max_words": 5}, "A dog. A cat sits.", ["shortened"]),
        ({"max_words": 4}, "A dog.", ["shortened"]),
        ({"max_words": 1}, "A dog.", ["shortened", "too_long"]),
        ({"max_words": 50, "max_sentences": 2}, "A dog. A cat sits.", ["shortened"]),
    ],
)
@pytest.mark.parametrize("fallback", [False, True])
async def test_whole_sentences_are_left_out(
    recording_client: Any, settings: dict[str, int], caption: str, flags: list[str], fallback: bool
):
    recorder, texts = recording_client(lambda request: 1 / 0), ["A dog.", "A cat sits.", "A cow."]
    found = await Assemble(**settings)(recorder.client, sentences=[] if fallback else texts, initial=texts)
    assert found == caption
    assert recorder.flags == ["fallback"] * fallback + flags


def test_bounds_below_one_are_refused():
    with pytest.raises(ValueError, match="max_words: expected at least 1, got 0"):
        Assemble(max_words=0)
