"""Assemble a caption without a language model."""

import re
from collections.abc import Iterator
from typing import Any, ClassVar

from scalecap.stages import ModelClient, stage
from scalecap.stages.group_details import details as details_of
from scalecap.stages.shortening import keep_fitting
from scalecap.text.segmentation import sentences as cut
from scalecap.text.segmentation import words

_EMPTY = frozenset({"a", "an", "the", "is", "are", "was", "were", "there"})


@stage
class Assemble:
    """Sentences, each followed by its details, then other details; repetitions are left out.

    No model is involved, so nothing is lost, changed or made up. A sentence
    repeats an earlier one that contains its words (except articles, "there" and forms of be) next to each
    other in the same order. Without sentences and details the caption is `initial`, one text or several,
    flagged "fallback".

    `max_sentences` and `max_words` drop whole sentences from the end, flagged "shortened"; a first sentence
    that is too long stays, flagged "too_long".
    """

    role: ClassVar[None] = None

    def __init__(self, *, max_sentences: int | None = None, max_words: int | None = None) -> None:
        for name, most in (("max_sentences", max_sentences), ("max_words", max_words)):
            if most is not None and most < 1:
                raise ValueError(f"{name}: expected at least 1, got {most}")
        self.max_sentences, self.max_words = max_sentences, max_words

    async def __call__(
        self,
        client: ModelClient,
        *,
        sentences: list[str],
        blocks: list[dict[str, Any]] | None = None,
        details: list[str] | None = None,
        initial: str | list[str] | None = None,
    ) -> str:
        parts: list[str] = []
        for place, sentence in enumerate(sentences):
            parts.append(sentence)
            if blocks:
                parts += [detail["text"] for detail in details_of([blocks[place]])]
        kept = list(distinct([*parts, *(details or [])]))
        if not kept:
            client.flag("fallback")
            if initial is None or isinstance(initial, str):
                return initial or ""
            kept = list(distinct(initial))
        return " ".join(keep_fitting(kept, self.max_sentences, self.max_words, client.flag))


def distinct(texts: list[str]) -> Iterator[str]:
    """The sentences of all texts, in order, without those that repeat an earlier one."""
    earlier: list[list[str]] = []
    for text in texts:
        for start, end in cut(text):
            sentence = text[start:end].strip()
            gist = [word for word in _words(sentence) if word not in _EMPTY] or [sentence]
            if sentence and not any(_within(gist, other) for other in earlier):
                earlier.append(gist)
                yield sentence


def _words(sentence: str) -> list[str]:
    return [re.sub(r"['’]s$", "", sentence[start:end].casefold()) for start, end in words(sentence)]


def _within(gist: list[str], other: list[str]) -> bool:
    return any(other[at : at + len(gist)] == gist for at in range(len(other)))
