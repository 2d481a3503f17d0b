"""Messages counted by what they have in common, in memory that does not grow with their number."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_KINDS = 500
"""Kinds of message that are counted apart."""
OTHER_MESSAGES = "other messages"
_VARYING = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s:]*/\S*|(?<![\w.])(?![1-5]\d\d\b(?!\.\d))\d[\d.,×]*""",
    re.DOTALL,
)
"""Quoted names, paths and numbers; but not a number like 404, which says what a server answered."""
MAX_CHARACTERS = 1_000
"""Characters of a message that are kept."""


@dataclass
class _Kind:
    first: str
    count: int = 0
    alike: bool = True
    """Whether all are as the first."""


class MessageCounts:
    """Counts messages together that differ in names, paths and numbers alone, by the first of each kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        """Kinds of message."""
        return len(self._kinds)

    def add(self, message: str) -> None:
        message = message[:MAX_CHARACTERS]
        key = _VARYING.sub("…", message)
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            key = message = OTHER_MESSAGES
        kind = self._kinds.setdefault(key, _Kind(message))
        kind.count += 1
        kind.alike = kind.alike and kind.first == message

    def most_common(self, most: int | None = None) -> list[tuple[str, int]]:
        """The first message of each kind and how many there are, the most frequent kinds first."""
        return [(text, count) for text, count in self][:most]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for kind in sorted(self._kinds.values(), key=lambda kind: -kind.count):
            yield kind.first + ("" if kind.alike else " (and others like it)"), kind.count
