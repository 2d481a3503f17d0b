"""Put a caption together without a language model."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from scalecap.clauses import sentences as cut
from scalecap.clauses import words
from scalecap.stages import Ask, stage
from scalecap.stages.group_details import details as details_of

_EMPTY = frozenset({"a", "an", "the", "is", "are", "was", "were", "there"})


@stage
class Assemble:
    """Sentences, each with its details after it, then other details; what repeats is left out.

    No model is asked, so nothing is lost, changed or made up, however weak the models are. A sentence
    repeats an earlier one when its words (but for articles, "there" and forms of be) stand in it side
    by side in the same order. With no sentence and no detail it is `initial`, marked "fallback".
    """

    role: ClassVar[None] = None

    async def __call__(
        self,
        ask: Ask,
        *,
        sentences: list[str],
        blocks: list[dict[str, Any]] | None = None,
        details: list[str] | None = None,
        initial: str | None = None,
    ) -> str:
        parts: list[str] = []
        for place, sentence in enumerate(sentences):
            parts.append(sentence)
            if blocks:
                parts += [detail["text"] for detail in details_of([blocks[place]])]
        told = list(distinct([*parts, *(details or [])]))
        if not told:
            ask.mark("fallback")
            return initial or ""
        return " ".join(told)


def distinct(texts: list[str]) -> Iterator[str]:
    """The sentences of all texts, in order, without those that repeat an earlier one."""
    before: list[list[str]] = []
    for text in texts:
        for start, end in cut(text):
            sentence = text[start:end].strip()
            gist = [word for word in _words(sentence) if word not in _EMPTY] or [sentence]
            if sentence and not any(_within(gist, other) for other in before):
                before.append(gist)
                yield sentence


def _words(sentence: str) -> list[str]:
    return [re.sub(r"['’]s$", "", sentence[start:end].casefold()) for start, end in words(sentence)]


def _within(gist: list[str], other: list[str]) -> bool:
    return any(other[at : at + len(gist)] == gist for at in range(len(other)))
