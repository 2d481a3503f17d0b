"""Cut several texts into sentences."""

from typing import Literal

from scalecap.stages import stage
from scalecap.stages.split_sentences import split_sentences


@stage(side=["about"])
def split_each(
    texts: list[str], *, rule: Literal["default", "seed"] = "default"
) -> tuple[list[str], list[int]]:
    """The sentences of all texts as one list; `about` has the place of each one's text, from 0."""
    found = [
        (sentence, place) for place, text in enumerate(texts) for sentence in split_sentences(text, rule=rule)
    ]
    return [sentence for sentence, _ in found], [place for _, place in found]
