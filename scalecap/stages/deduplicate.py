"""Drop texts whose content another text repeats."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from scalecap.stages import Columns, ModelClient, stage
from scalecap.text.content_words import AUXILIARIES, is_compound, tagged

FRAME = frozenset([
    "image", "picture", "photo", "photograph", "scene", "show", "shows", "showing", "depict", "depicts",
    "see", "seen", "visible", "appear", "appears", "there", "i", "set", "everything",
])  # fmt: skip
"""Words that refer to the image itself, not to its content."""
_RELATIONS = {
    **dict.fromkeys(["at", "in", "inside", "into", "on", "onto", "upon", "within"], "at"),
    **dict.fromkeys(["above", "over"], "above"),
    **dict.fromkeys(["below", "beneath", "under", "underneath"], "below"),
    **dict.fromkeys(["beside", "by", "near"], "near"),
    **{
        each: each
        for each in ("across", "against", "around", "behind", "between", "off", "outside", "through")
    },
    **{each: each for each in ("with", "without", "no")},
}
"""Prepositions that relate things, by one of the same meaning, and "no", which stands before a noun, too."""
_SIDES = frozenset(["back", "bottom", "center", "centre", "front", "left", "middle", "right", "side", "top"])
"""Nouns after a preposition that are tagged in several ways."""
_NEGATIONS = frozenset(["no", "not", "never", "neither", "nor", "none", "without"])
_PRONOUNS = frozenset(["he", "she", "it", "they"])
_MODIFIERS = ("JJ", "RB", "CD")
_HEADS = ("NN", "VB", "UH", "FW")
"""Prefixes of the Penn Treebank tags of words that modifiers attach to, or that stand alone."""


class Gist(NamedTuple):
    """The content of a text, regardless of its wording."""

    heads: tuple[str, ...]
    """Nouns ("teddy bear" is one) and verbs, in order."""
    modifiers: frozenset[tuple[str, str]]
    """Adjectives, adverbs and numbers, each with the noun that it modifies."""
    relations: frozenset[tuple[str, str]] = frozenset()
    """Prepositions, each with the noun after it."""
    negated: bool = False
    """Whether it says what is not there."""
    pronouns: frozenset[str] = frozenset()

    def within(self, other: "Gist") -> bool:
        """Whether the other one has all of this content; if it is negated, no more than this."""
        if self.negated or other.negated:
            return self == other
        rest = iter(other.heads)
        return (
            self.modifiers <= other.modifiers
            and self.relations <= other.relations
            and self.pronouns <= other.pronouns
            and all(head in rest for head in self.heads)
        )


@stage(side=["repeats"])
class Deduplicate:
    """The texts, in order, without those whose content another one has; of equal ones the first stays.

    `texts` is one column, or several that are concatenated. Texts covered by one of `known` are dropped too.

    A text is covered by one that has its nouns and verbs in the same order and each of its adjectives,
    numbers and prepositions at the same noun ("I can see a dog." by "A brown dog is at the left."; "The dog
    is brown." is not by "A dog and a brown cat."), and its pronouns ("He wears a hat." is not by "She wears
    a red hat."). A negated text is covered by one of equal content only. Words are compared as
    they are written, but for case; "the picture shows" and the like do not count. The side column `repeats`
    has {text, by} of each text left out.
    """

    role: ClassVar[None] = None

    def __init__(self, *, near: bool = True) -> None:
        self._gist = gist if near else lambda text: Gist((text,), frozenset())
        self._gist("loads the lexicon now, before rows start")

    async def __call__(
        self, client: ModelClient, *, texts: Columns, known: list[str] | None = None
    ) -> tuple[list[str], list[dict[str, Any]]]:
        before = known or []
        every = [*before, *(text for column in texts.values() for text in column or ())]
        gists = [self._gist(text) for text in every]
        kept: list[str] = []
        repeats: list[dict[str, Any]] = []
        for place in range(len(before), len(every)):
            by = _repeated(place, gists, len(before))
            if by is None:
                kept.append(every[place])
            else:
                repeats.append({"text": every[place], "by": every[by]})
        return kept, repeats


def _repeated(place: int, gists: Sequence[Gist], known: int) -> int | None:
    """The index of the text with the most content among those that cover this one.

    The first `known` texts are always kept.
    """
    mine = gists[place]
    others = [
        other
        for other, its in enumerate(gists)
        if other != place and mine.within(its) and (other < max(place, known) or not its.within(mine))
    ]
    size = [len(gists[other].heads) + len(gists[other].modifiers) for other in others]
    return others[size.index(max(size))] if others else None


def gist(text: str) -> Gist:
    """The content of a text."""
    every = [(text[start:end].casefold().replace("’", "'"), tag) for (start, end), _, tag in tagged(text)]
    relations = {
        (_RELATIONS[word], noun)
        for place, (word, _) in enumerate(every)
        if word in _RELATIONS and (noun := _next_noun(every, place)) not in FRAME
    }
    words = [
        (stem, tag)
        for stem, tag in _joined([(stem.casefold(), tag) for _, stem, tag in tagged(text)])
        if stem not in FRAME and stem not in AUXILIARIES
    ]
    heads = tuple(word for word, tag in words if tag.startswith(_HEADS))
    modifiers = {
        (word, _noun(words, place)) for place, (word, tag) in enumerate(words) if tag.startswith(_MODIFIERS)
    }
    return Gist(
        heads if heads or modifiers else (text.casefold(),),
        frozenset(modifiers),
        frozenset(relations),
        is_negated(word for word, _ in every),
        frozenset(word for word, _ in every if word in _PRONOUNS),
    )


def is_negated(words: Iterable[str]) -> bool:
    """Whether a text with these words, in lower case, says what is not there."""
    return any(word in _NEGATIONS or word.endswith("n't") for word in words)


def _joined(words: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Words with their tags, those of a compound noun as one."""
    joined: list[tuple[str, str]] = []
    for word, tag in words:
        before, its_tag = joined[-1] if joined else ("", "")
        if is_compound(its_tag, tag) and _SIDES.union(FRAME).isdisjoint((before, word)):
            joined[-1] = (f"{before} {word}", "NN")
        else:
            joined.append((word, tag))
    return joined


def _noun(words: Sequence[tuple[str, str]], place: int) -> str:
    """The noun that a modifier belongs to: the one right after it, else the first before it."""
    after = place + 1
    while after < len(words) and (words[after][1].startswith(_MODIFIERS) or words[after][0] == "and"):
        after += 1
    if after < len(words) and words[after][1].startswith("NN"):
        return words[after][0]
    return next((word for word, tag in words[:place] if tag.startswith("NN")), "")


def _next_noun(words: Sequence[tuple[str, str]], place: int) -> str:
    """The first noun after a preposition, else the first before it ("the lamp is off")."""
    after = (word for word, tag in words[place + 1 :] if tag.startswith("NN") or word in _SIDES)
    before = (word for word, tag in words[:place] if tag.startswith("NN"))
    return next(after, None) or next(before, "")
