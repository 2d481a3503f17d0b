"""Suggestions for a misspelt name, to end an error message with."""

from collections.abc import Collection
from difflib import get_close_matches

MAX_LISTED = 50
"""Longer lists of valid names are left out of messages."""


def did_you_mean(name: str, valid: Collection[str]) -> str:
    """The end of a message: "; did you mean 'threshold'?", or "; available: a, b" when no name is similar.

    Empty when no name is similar and there are too many to list.
    """
    if close := get_close_matches(name, valid):
        *others, last = map(repr, close)
        return "; did you mean " + (", ".join(others) + " or " if others else "") + f"{last}?"
    if len(valid) > MAX_LISTED:
        return ""
    return f"; available: {', '.join(sorted(valid)) or 'none'}"
