"""Text of messages: plurals, and counts of similar ones in memory that does not grow with their number."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_KINDS = 500
"""Kinds of message that are counted separately; the rest is counted as OTHER_MESSAGES."""
OTHER_MESSAGES = "other messages"
_VARYING = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s:]*/\S*|(?<![\w.])(?![1-5]\d\d\b(?!\.\d))\d[\d.,×]*""",
    re.DOTALL,
)
"""Quoted names, paths and numbers, which vary; but not numbers like 404, a server's status."""
MAX_CHARACTERS = 1_000
"""Longer messages are cut."""


def plural(count: int, noun: str) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


@dataclass
class _Kind:
    first: str
    count: int = 0
    identical: bool = True
    """Whether all messages equal the first."""


class MessageCounts:
    """Counts messages by kind: those that differ only in names, paths and numbers are of one kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        """Number of kinds."""
        return len(self._kinds)

    def add(self, message: str) -> None:
        message = message[:MAX_CHARACTERS]
        key = _VARYING.sub("…", message)
        if key not in self._kinds and len(self._kinds) >= MAX_KINDS:
            key = message = OTHER_MESSAGES
        kind = self._kinds.setdefault(key, _Kind(message))
        kind.count += 1
        kind.identical = kind.identical and kind.first == message

    def most_common(self, n: int | None = None) -> list[tuple[str, int]]:
        """The first message of the `n` most frequent kinds, and their counts."""
        return list(self)[:n]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for kind in sorted(self._kinds.values(), key=lambda kind: -kind.count):
            yield kind.first + ("" if kind.identical else " (and similar)"), kind.count
