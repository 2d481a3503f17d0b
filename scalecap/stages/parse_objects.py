"""Read what to ask about out of a model's replies, one a sentence."""

import re
from collections.abc import Iterator
from typing import Any

from scalecap.stages import Columns, stage
from scalecap.stages.parse_questions import ASKS, asking_lines

_ARTICLE = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)
_MARKS = " \t\"'“”‘’*_`[]()<>.,;:!?"


@stage(side=["about"])
def parse_objects(
    texts: Columns, sentences: list[str] | None = None, *, budget: int | None = None
) -> tuple[list[str], list[dict[str, Any]]]:
    """Questions about each object once, then the same about their positions.

    A line of a reply that contains "Describe more details about" names an object, up to its first full
    stop. "A Cat" is "the cat": case and article make no other object. `budget` is the most objects
    asked about, in the order in which the sentences bring them; null is all.

    The side column `about` tells of each question {object, sentence, position}: its object, the place
    of the sentence that brought it (from 0), and whether it asks for the position. Where the replies are
    not one a sentence, `sentences` are what they are about: an object's is the first that names it.
    """
    found: dict[str, tuple[str, int]] = {}
    for sentence, reply in enumerate(reply for replies in texts.values() for reply in replies):
        for name in _objects(reply):
            bare = _ARTICLE.sub("", name, count=1) if _ARTICLE.match(name) else name
            found.setdefault(" ".join(bare.casefold().split()), (name, sentence))
    asked = list(found.values())[: None if budget is None else max(budget, 0)]
    if sentences is not None:
        asked = [(name, _place(name, sentences)) for name, _ in asked]
    questions, about = [], []
    for position in (False, True):
        for name, sentence in asked:
            questions.append(f"{ASKS} {'the position of ' if position else ''}{name}.")
            about.append({"object": name, "sentence": sentence, "position": position})
    return questions, about


def _place(name: str, sentences: list[str]) -> int:
    """The first sentence with the last word of the name, "dogs" as well as "dog"; else the first."""
    head = name.casefold().split()[-1].removesuffix("s")
    named = (
        place for place, text in enumerate(sentences) if re.search(rf"\b{re.escape(head)}", text.casefold())
    )
    return next(named, 0)


def _objects(reply: str) -> Iterator[str]:
    for line in asking_lines(reply):
        rest = line.partition(ASKS)[2]
        name = rest.partition(".")[0].strip().removeprefix("the position of ").strip(_MARKS)
        if name:
            yield name
