"""What a model's free reply holds: its lines."""

import re

_MARK = re.compile(r"^\s*(?:[-•]\s*|\*\s+|\d+[.)]\s+)")
"""Of a list's item: "- ", "1. ", not the number in "3 dogs"."""


def lines(reply: str) -> list[str]:
    """The lines of a reply that hold something, stripped, without the marks of a list ("- ", "1. ")."""
    found = (_MARK.sub("", line, count=1).strip() for line in reply.splitlines())
    return [line for line in found if line]
