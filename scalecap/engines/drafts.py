"""Drafts of a reply that repeats its prompt, as a fusion does: the words that followed the same words before.

Prompt lookup decoding (Saxena 2023): the model reads a draft in one step and would have written each of its
tokens that stands, so the reply is the same, in fewer steps.
"""

from collections.abc import Sequence

MAX_NGRAM = 3
"""Tokens that are looked up together, at most."""
MAX_DRAFT_TOKENS = 5
"""Tokens of a draft, at most: of a fusion's, five leave 0.41 steps a token of the reply, ten 0.39."""


class PromptLookup:
    """The tokens of a prompt and its reply so far."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Up to `MAX_NGRAM` tokens to the place after their last occurrence that has one."""
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token of the reply."""
        for count in range(1, min(MAX_NGRAM, len(self._ids)) + 1):
            self._after[tuple(self._ids[-count:])] = len(self._ids)
        self._ids.append(token)

    def draft(self, most: int) -> list[int]:
        """What followed the longest ending that was there before, at most so many tokens; often nothing."""
        for count in range(min(MAX_NGRAM, len(self._ids)), 0, -1):
            place = self._after.get(tuple(self._ids[-count:]))
            if place is not None:
                return self._ids[place : place + min(most, MAX_DRAFT_TOKENS)]
        return []
