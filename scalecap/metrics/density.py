"""How long, dense and repetitive captions are; no model needed."""

import re
from pathlib import Path
from typing import Any

from scalecap.metrics import texts
from scalecap.stages import Columns, Measures, stage
from scalecap.stages.split_sentences import split_sentences

FUNCTION_WORDS = frozenset(Path(__file__).with_name("function_words.txt").read_text("utf-8").split())
"""English words of closed classes, which tell nothing of a picture by themselves."""

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")


@stage
def density(
    captions: Columns, before: Columns | None = None, initial: str | None = None, *, words: int | None = None
) -> Measures:
    """Words, sentences, content words and repetition of each caption.

    `content` counts distinct words that are no English function words, `new` those of them that the
    column `initial` has not, `variety` is the type-token ratio (it falls with length: compare at equal
    `words`), `repetition` the share of 4-grams said before in the caption (Welleck et al. 2020, rep-4).
    """
    known = content(initial or "")
    measured: dict[str, Any] = {}
    for name, caption in texts({**(before or {}), **captions}, words):
        told = list_words(caption)
        grams = [tuple(told[at : at + 4]) for at in range(len(told) - 3)]
        measured[name] = {
            "words": len(told),
            "sentences": len(split_sentences(caption)),
            "content": len(content(caption)),
            "variety": {"count": len(set(told)), "of": len(told)},
            "repetition": {"count": len(grams) - len(set(grams)), "of": len(grams)},
        }
        if initial is not None:
            measured[name]["new"] = len(content(caption) - known)
    return measured


def list_words(text: str) -> list[str]:
    """The words of a text in order, in lower case."""
    return _WORD.findall(text.lower())


def content(text: str) -> set[str]:
    """Distinct words that are no function words."""
    return set(list_words(text)) - FUNCTION_WORDS
