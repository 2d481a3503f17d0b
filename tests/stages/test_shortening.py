"""Texts cut to a limit, and the order in which details are dropped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.stages.shortening import by_probability, from_the_end, probabilities, truncate
from scalecap.text import segmentation as clauses


@pytest.mark.parametrize(
    ("text", "sentences", "characters", "limited"),
    [
        ("A dog. A cat. A bird.", 2, None, "A dog. A cat."),
        ("A dog. A cat. A bird.", None, 14, "A dog. A cat."),
        ("A dog. A cat. A bird.", 1, 14, "A dog."),
        ("A dog, which is brown, sits on a mat. It waits.", 2, 25, "A dog, which is brown."),
        ("A dog, which is brown, sits on a mat.", 2, 12, "A dog."),
        ("A brown dog sits on a mat.", 2, 12, "A brown dog…"),
        ("Donaudampfschiff", 2, 5, "Dona…"),
        ("It is 3.5 m high.", 1, 99, "It is 3.5 m high."),
        ("一只狗。一只猫。", 1, 99, "一只狗。"),
        ("", 1, 1, ""),
        ("  ", 1, None, ""),
        ("A sign\nB", None, 6, "A sign"),
    ],
)
def test_limit(text, sentences, characters, limited):
    assert truncate(text, sentences, characters) == limited


@given(st.text(max_size=80), st.none() | st.integers(1, 3), st.none() | st.integers(1, 40))
def test_a_limit_is_kept(text, sentences, characters):
    limited = truncate(text, sentences, characters)
    assert characters is None or len(limited) <= characters
    assert sentences is None or len(clauses.sentences(limited)) <= sentences


def test_from_the_end():
    assert from_the_end([["a", "b"], ["c", "d"]]) == [3, 1, 2, 0]
    assert from_the_end([["a"], ["b", "c", "d"]]) == [3, 2, 1, 0]
    assert from_the_end([]) == []


def test_by_probability():
    assert by_probability([0.9, 0.2, 0.9, 0.5]) == [1, 3, 2, 0]
    assert by_probability([0.9, None]) is None
    assert by_probability([]) == []


def test_probabilities_are_those_of_what_is_left():
    scores = [
        {"text": "a, b", "remains": "a", "kept": True, "p_yes": 0.6},
        {"text": "c", "kept": False, "p_yes": 0.1},
        {"text": "a", "kept": True, "p_yes": 0.5},
        {"text": "d", "kept": True, "p_yes": None},
    ]
    assert probabilities(scores) == {"a": 0.5}
    assert probabilities(None) == {}
