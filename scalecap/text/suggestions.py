"""What else a misspelt name may have meant."""

from collections.abc import Collection
from difflib import get_close_matches

MANY = 50
"""More names than this are not listed."""


def nearest(name: str, valid: Collection[str]) -> str:
    """The valid names most like `name`, or all of them when none is, to end an error with."""
    if not valid:
        return "there are none"
    close = get_close_matches(name, valid, n=3, cutoff=0.6)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"there are: {', '.join(sorted(valid))}" if len(valid) <= MANY else "nothing is near it"
