"""What the sentences of a caption have in common with other texts."""

from typing import Any

from scalecap.stages import stage
from scalecap.stages.deduplicate import Gist, gist
from scalecap.text.segmentation import sentences


@stage
def shared_words(text: str, others: list[str], about: list[str]) -> list[dict[str, Any]]:
    """Of each sentence, which content words stand in which of the other texts: {text, shared}.

    `shared` has {column, text, words} of each other text that has some of the sentence's nouns, verbs,
    adjectives, adverbs and numbers; `about` names the column of each. A sentence without any does
    not come from the other texts. One with some may, or the image shows the same.
    """
    known = [(column, other, _words(gist(other))) for column, other in zip(about, others, strict=True)]
    found = []
    for start, end in sentences(text):
        sentence = text[start:end].strip()
        mine = _words(gist(sentence))
        shared = [
            {"column": column, "text": other, "words": [word for word in mine if word in its]}
            for column, other, its in known
            if not mine.keys().isdisjoint(its)
        ]
        if sentence:
            found.append({"text": sentence, "shared": shared})
    return found


def _words(said: Gist) -> dict[str, None]:
    """The content words, each once, in order."""
    return dict.fromkeys([*said.heads, *sorted(word for word, _ in said.modifiers)])
