"""Assemble a caption without a language model."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from scalecap.stages import ModelClient, stage
from scalecap.stages.deduplicate import is_negated
from scalecap.stages.shortening import keep_fitting
from scalecap.text.content_words import is_compound, tagged
from scalecap.text.segmentation import sentences as cut

_EMPTY = frozenset({"a", "an", "the", "is", "are", "was", "were", "there"})


@stage
class Assemble:
    """Sentences, each followed by its details, then other details; repetitions are left out.

    No model is involved, so nothing is lost, changed or made up. A sentence repeats an earlier one that
    contains its words (except articles, "there" and forms of be) next to each other in the same order, unless
    a noun beside them makes another thing of it (a teddy bear is no bear), one of the two is negated, or the
    words are "The lamp is on" and the other lamp is on a table. Without sentences and details the caption is
    `initial`, one text or several, flagged "fallback".

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
                parts += [detail["text"] for detail in blocks[place]["details"]]
        kept = list(distinct([*parts, *(details or [])]))
        if not kept:
            client.flag("fallback")
            if initial is None or isinstance(initial, str):
                return initial or ""
            kept = list(distinct(initial))
        return " ".join(keep_fitting(kept, self.max_sentences, self.max_words, client.flag))


def distinct(texts: list[str]) -> Iterator[str]:
    """The sentences of all texts, in order, without those that repeat an earlier one."""
    earlier: list[list[_Word]] = []
    for text in texts:
        for start, end in cut(text):
            sentence = text[start:end].strip()
            every = [
                _Word(sentence[slice(*span)].casefold().replace("’", "'").removesuffix("'s"), tag, place)
                for place, (span, _, tag) in enumerate(tagged(sentence))
            ]
            gist = [word for word in every if word.text not in _EMPTY] or [_Word(sentence, "", 0)]
            if sentence and not any(_repeats(gist, other) for other in earlier):
                earlier.append(gist)
                yield sentence


class _Word(NamedTuple):
    text: str
    tag: str
    place: int
    """Among all words of its sentence."""


def _repeats(gist: Sequence[_Word], other: Sequence[_Word]) -> bool:
    """Whether the other sentence has these words, and says the same with them."""
    texts, others = ([word.text for word in each] for each in (gist, other))
    if is_negated(texts) or is_negated(others) or texts[-1] in ("on", "off"):
        return texts == others
    return any(
        others[at : at + len(gist)] == texts and not _in_compound(other, at, at + len(gist))
        for at in range(len(other))
    )


def _in_compound(words: Sequence[_Word], start: int, end: int) -> bool:
    """Whether a noun beside the words at `start:end` changes what they mean: the bear of "teddy bear"."""
    edges = [words[at - 1 : at + 1] for at in (start, end) if 0 < at < len(words)]
    return any(
        one.place + 1 == next_one.place and is_compound(one.tag, next_one.tag) for one, next_one in edges
    )
