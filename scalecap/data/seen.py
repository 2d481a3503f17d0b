"""A compact set of strings: 8 bytes each, so that the ids of many millions of rows fit in memory."""

import hashlib

import numpy as np

MAX_RECENT = 2**16
"""Digests kept in a Python set before they are packed into an array."""


def digest(text: str) -> int:
    """A 64-bit digest, never 0. Among 100 million strings, a collision has a probability of 1 in 3,700."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


class Seen:
    """An append-only set of string digests: sorted arrays, each at least twice as long as the next (merged as
    they fill up), so that a lookup is a few binary searches."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._packed: list[np.ndarray] = []

    def add(self, text: str) -> bool:
        """Adds a string; returns whether it is new."""
        found = digest(text)
        if found in self._recent or any(_contains(each, found) for each in self._packed):
            return False
        self._recent.add(found)
        if len(self._recent) == MAX_RECENT:
            self._pack()
        return True

    def _pack(self) -> None:
        packed = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
        self._recent.clear()
        while self._packed and len(self._packed[-1]) < 2 * len(packed):
            packed = np.sort(np.concatenate([self._packed.pop(), packed]))
        self._packed.append(packed)


def _contains(packed: np.ndarray, value: int) -> bool:
    at = int(np.searchsorted(packed, np.uint64(value)))
    return at < len(packed) and int(packed[at]) == value
