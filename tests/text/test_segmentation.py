"""Sentences, clauses and words: nothing is lost, and nothing is made up."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.text.segmentation import Span, clauses, join_kept, overlap, sentences, words

CAPTIONS = st.text(
    alphabet=st.sampled_from("aB1.,!?，。、！'’\"”)*-_ \n\t\u2028汉字éא🐈\u0301"), max_size=60
) | st.text(max_size=40)


def cut(text: str, spans: list[Span]) -> list[str]:
    return [text[start:end] for start, end in spans]


@given(CAPTIONS)
def test_every_character_belongs_to_one_sentence_and_one_clause(text: str) -> None:
    whole = cut(text, sentences(text))
    assert "".join(whole) == text
    assert all(each.strip() for each in whole) or len(whole) == 1
    for sentence in whole:
        parts = cut(sentence, clauses(sentence))
        assert "".join(parts) == sentence
        assert all(part.strip() for part in parts) or len(parts) == 1


@given(CAPTIONS, st.lists(st.booleans(), min_size=60, max_size=60))
def test_what_is_left_is_made_of_the_texts_own_characters(text: str, choice: list[bool]) -> None:
    for sentence in cut(text, sentences(text)):
        pieces = list(zip(cut(sentence, clauses(sentence)), choice, strict=False))
        remains = join_kept(pieces)
        characters = iter(sentence)
        assert all(character in characters for character in remains)  # in their order, each used once
        if all(keep for _, keep in pieces):
            assert remains == sentence.strip()
        if not any(keep for _, keep in pieces):
            assert remains == ""


@given(CAPTIONS)
def test_words_are_in_order_and_apart(text: str) -> None:
    found = words(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert all(a.start < a.end and not text[slice(*a)].isspace() for a in found)


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_overlaps_are_all_found(first: list[int], second: list[int]) -> None:
    def spans(lengths: list[int]) -> list[Span]:
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        return [Span(end - length, end) for end, length in zip(ends, lengths, strict=True)][::2]

    a, b = spans(first), spans(second)
    expected = [
        (i, j) for i, x in enumerate(a) for j, y in enumerate(b) if min(x.end, y.end) > max(x.start, y.start)
    ]
    assert list(overlap(a, b)) == expected


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        ("A dog, a cat, and a bird. ", ["A dog,", " a cat,", " and a bird. "]),
        ("A 3.5 m pole, 1,200 people.", ["A 3.5 m pole,", " 1,200 people."]),
        ("**Red,** then *blue*.", ["**Red,**", " then *blue*."]),
        ('A sign, "Stop," and a car.', ["A sign,", ' "Stop,"', " and a car."]),
        ("一只狗，一只猫。", ["一只狗，", "一只猫。"]),
        ("猫、犬、鳥がいる。", ["猫、犬、鳥がいる。"]),
        ("كلب، قطة.", ["كلب،", " قطة."]),
        ("- a list's item, cut", ["- a list's item,", " cut"]),
        ("no comma and no mark", ["no comma and no mark"]),
        (" , ", [" , "]),
    ],
)
def test_clauses_end_after_commas_between_words(sentence: str, parts: list[str]) -> None:
    assert cut(sentence, clauses(sentence)) == parts


@pytest.mark.parametrize(
    ("keep", "remains"),
    [
        ("111", "A dog, a cat, and a bird."),
        ("100", "A dog."),
        ("110", "A dog, a cat."),
        ("001", "and a bird."),
        ("101", "A dog, and a bird."),
        ("000", ""),
    ],
)
def test_the_sentences_own_mark_ends_what_is_left(keep: str, remains: str) -> None:
    parts = ["A dog,", " a cat,", " and a bird. "]
    assert join_kept([(part, sign == "1") for part, sign in zip(parts, keep, strict=True)]) == remains


def test_a_cut_off_caption_keeps_its_last_clause() -> None:
    text = "A dog runs. A cat sleeps, and a bi"
    assert cut(text, sentences(text)) == ["A dog runs.", " A cat sleeps, and a bi"]
    assert join_kept([(" A cat sleeps,", True), (" and a bi", False)]) == "A cat sleeps"


def test_words_keep_apostrophes_hyphens_and_decimals() -> None:
    text = "The dog’s 3.5-metre **tail**, isn't 1,200/km_h. 一只狗。"
    assert cut(text, words(text)) == [
        *("The", "dog’s", "3.5-metre", "tail", "isn't", "1,200", "km", "h", "一只狗"),
    ]
