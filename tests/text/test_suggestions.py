"""Suggestions for a misspelt name."""

import pytest

from scalecap.text.suggestions import did_you_mean


@pytest.mark.parametrize(
    ("name", "valid", "expected"),
    [
        ("verfy", ["verify", "caption"], "; did you mean 'verify'?"),
        ("word", ["words", "ward", "x"], "; did you mean 'words' or 'ward'?"),
        ("zzz", ["verify", "caption"], "; available: caption, verify"),
        ("x", [], "; available: none"),
        ("zzz", [f"name{number}" for number in range(51)], ""),
    ],
)
def test_did_you_mean(name: str, valid: list[str], expected: str):
    assert did_you_mean(name, valid) == expected
