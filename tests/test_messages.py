"""Messages that say the same about different files count together."""

import pytest

from scalecap import messages
from scalecap.messages import MessageCounts, plural


def counted(*texts: str) -> dict[str, int]:
    found = MessageCounts()
    for text in texts:
        found.add(text)
    return dict(found)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (
            "image: missing_file: no such file: '/a/1.png'",
            "image: missing_file: no such file: '/b/2.png'",
            True,
        ),
        (
            "row: invalid_json: line 17 of 'x.jsonl' is no JSON",
            "row: invalid_json: line 2 of 'y' is no JSON",
            True,
        ),
        ("too_large: '/a.png' has 20000×30000 pixels", "too_large: '/b.png' has 9×1000000 pixels", True),
        ("can't read /data/a.png", "can't read /data/b c.png", False),
        ('it says "a"', 'it says "it\\"s b"', True),
        ("no answer within 600 s", "no answer within 601 s", True),
        ("the server answered 404", "the server answered 503", False),
        ("the prompt has 5000 tokens", "the prompt has 6000.5 tokens", True),
        ("a: timeout", "b: timeout", False),
    ],
)
def test_messages_count_together_that_differ_in_names_and_numbers(first: str, second: str, together: bool):
    found = counted(first, second, first)
    if together:
        assert found == {f"{first} (and similar)": 3}
    else:
        assert found == {first: 2, second: 1}


def test_the_most_frequent_come_first():
    found = MessageCounts()
    for text in ("a", "b", "b", "c 10", "c 11", "c 12"):
        found.add(text)
    assert found.most_common(2) == [("c 10 (and similar)", 3), ("b", 2)]
    assert len(found) == 3


def test_kinds_and_characters_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(messages, "MAX_KINDS", 3)
    found = counted("a", "b", "c", "d", "e", "a", "x" * 10_000)
    assert found == {"other messages": 3, "a": 2, "b": 1, "c": 1}
    assert max(map(len, counted("x" * 10_000))) == 1_000


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (1234, "1,234 rows")])
def test_plurals(count: int, text: str):
    assert plural(count, "row") == text
