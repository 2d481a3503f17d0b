import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.engines.base import Scored, Token
from scalecap.stages import verdicts


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("1. yes\n2. no\n3. yes", [True, False, True]),
        ("3) Yes.\n 1: YES, it is.\n\n2 - No", [True, False, True]),
        ("**1.** yes\n2. no\n3. no", [True, False, False]),
        ("Here they are:\n1. **yes**\n2. **no**\n3. *no*\n4. yes", [True, False, False]),
        ("(1) yes\n- 2. no (it is a cat)\n3. yes – it is", [True, False, True]),
        ("1. yes\r\n2. no\r\n3. yes\r\n", [True, False, True]),
        ("1. No parking sign is visible: yes\n2. no\n3. yes", None),
        ("1. yes\n2. no", None),
        ("1. yes\n2. no\n2. yes\n3. no", None),
        ("1. yes\n2. no\n3. not sure", None),
        ("1. yes\n2. no\n3. eyes", None),
        ("yes\nno\nyes", None),
        ("", None),
    ],
)
def test_verdicts_are_read_and_not_guessed(reply, said):
    found = verdicts.parse(reply, 3)
    assert (found and [verdict.yes for verdict in found]) == said


@given(st.lists(st.sampled_from(["yes", "no", "Yes", "No", "YES"]), min_size=1, max_size=12))
def test_what_is_written_reads_as_it_was(words):
    text = "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))
    found = verdicts.parse(text, len(words))
    assert [text[start:end] for _, (start, end) in found] == words
    assert [yes for yes, _ in found] == [word.lower() == "yes" for word in words]


def test_statements_are_numbered_each_on_a_line():
    assert verdicts.number_lines(["A dog.", "A\n cat."]) == "1. A dog.\n2. A cat."


def test_p_yes_is_that_of_the_word():
    said = verdicts.parse("1. yes\n2. no", 2)
    spans = [(0, 2, -5.0), (2, 4, -0.1), (4, 6, -0.2), (6, 9, -5.0), (9, 12, math.log(0.9))]
    scored = Scored(tuple(Token(start, end, logprob) for start, end, logprob in spans))
    assert verdicts.p_yes(scored, said) == pytest.approx([math.exp(-0.3), 0.1])
    unknown = Scored(tuple(Token(start, end, math.nan, 1.0) for start, end, _ in spans))
    assert verdicts.p_yes(unknown, said) is None
