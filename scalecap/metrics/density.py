"""How long, dense and repetitive captions are; no model needed."""

from typing import Any

from scalecap.metrics import texts
from scalecap.stages import Columns, Measures, stage
from scalecap.stages.split_sentences import split_sentences
from scalecap.text import segmentation
from scalecap.text.content_words import content_words, nouns


@stage(better={"repetition": "lower", "words": "neither", "sentences": "neither"})
def density(
    captions: Columns, before: Columns | None = None, initial: str | None = None, *, words: int | None = None
) -> Measures:
    """Words, sentences, content words, objects and repetition of each caption.

    `content` counts distinct content words (adjectives, adverbs, nouns, numbers, verbs), `new` those
    that the column `initial` lacks, `objects` distinct nouns (a plural is its singular); `variety` is
    the type-token ratio (it falls with length: compare at equal `words`), `repetition` the share of
    4-grams repeated in the caption (Welleck et al. 2020, rep-4).
    """
    known = _content(initial or "")
    measured: dict[str, Any] = {}
    for name, caption in texts({**(before or {}), **captions}, words):
        tokens = [caption[start:end].lower() for start, end in segmentation.words(caption)]
        grams = [tuple(tokens[at : at + 4]) for at in range(len(tokens) - 3)]
        content = _content(caption)
        measured[name] = {
            "words": segmentation.word_count(caption),
            "sentences": len(split_sentences(caption)),
            "content": len(content),
            "objects": len(nouns(caption)),
            "variety": {"count": len(set(tokens)), "of": len(tokens)},
            "repetition": {"count": len(grams) - len(set(grams)), "of": len(grams)},
        }
        if initial is not None:
            measured[name]["new"] = len(content - known)
    return measured


def _content(text: str) -> set[str]:
    return {text[start:end].lower() for start, end in content_words(text)}
