"""Parse the objects to ask about from a model's replies, one reply per sentence."""

import re
from collections.abc import Iterator
from typing import Any

from scalecap.stages import Columns, stage
from scalecap.stages.parse_questions import ASKS, MARKDOWN, asking_lines
from scalecap.text import segmentation

_ARTICLE = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)
_MARKS = " \t\"'“”‘’_<>.,;:!?"


@stage(side=["about"])
def parse_objects(
    texts: Columns, sentences: list[str] | None = None, *, budget: int | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Questions about each object once, then the same about their positions.

    "Describe more details about" in a reply is followed by the name of an object, up to the end of that
    sentence. Case and article are ignored: "A Cat" is "the cat". `budget` is the maximum number of objects,
    in the order of the sentences; null is all.

    The side column `about` has {object, sentence, position} of each question: its object, the index of the
    sentence that names it (from 0), and whether it asks for the position. If there is not one reply per
    sentence, pass the `sentences`: an object belongs to the first that names it.
    """
    found: dict[str, tuple[str, int]] = {}
    for sentence, reply in enumerate(reply for replies in texts.values() for reply in replies):
        for name in _objects(reply):
            bare = _ARTICLE.sub("", name, count=1) if _ARTICLE.match(name) else name
            found.setdefault(" ".join(bare.casefold().split()), (name, sentence))
    chosen = list(found.values())[: None if budget is None else max(budget, 0)]
    if sentences is not None:
        chosen = [(name, _place(name, sentences)) for name, _ in chosen]
    questions, about = [], []
    for position in (False, True):
        for name, sentence in chosen:
            questions.append(f"{ASKS} {'the position of ' if position else ''}{name}.")
            about.append({"object": name, "sentence": sentence, "position": position})
    return questions, about


def _place(name: str, sentences: list[str]) -> int:
    """The first sentence with the last word of the name, "dogs" as well as "dog"; else the first."""
    head = re.compile(rf"\b{re.escape(name.casefold().split()[-1].removesuffix('s'))}s?(?:e?s)?\b")
    return next((place for place, text in enumerate(sentences) if head.search(text.casefold())), 0)


def _objects(reply: str) -> Iterator[str]:
    for rest in (rest for line in asking_lines(reply) for rest in MARKDOWN.sub("", line).split(ASKS)[1:]):
        end = next((end for _, end in segmentation.sentences(rest)), 0)
        if name := rest[:end].strip().removeprefix("the position of ").strip(_MARKS):
            yield name
