"""Texts that must fit: into a model's context, or into a length."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from scalecap.stages import Generated, Image, ModelClient, PromptTooLong, Sampling
from scalecap.text.parsing import complete_sentences
from scalecap.text.segmentation import clauses, left, sentences, words

SHARE = 0.75
"""Of the context that a shortened prompt is to take."""


async def generate_fitting(
    client: ModelClient,
    render: Callable[[Collection[int]], str],
    sizes: Sequence[int],
    drops: Sequence[int],
    *,
    model: str,
    sampling: Sampling | None,
    image: Image | None = None,
    retry: Callable[[Collection[int]], str] | None = None,
    **settings: Any,
) -> Generated:
    """Ask; what does not fit, or leaves its reply no room, is asked again with less, marked "shortened".

    A reply that was cut ends with its last whole sentence.

    Args:
        render: the prompt without the pieces at these places.
        sizes: characters of each piece.
        drops: places of pieces in the order in which they are given up, until the prompt takes about
            three quarters of the context.
        retry: likewise the prompt for a refused or empty reply.
        settings: what else `ModelClient.generate` takes.

    Raises:
        PromptTooLong: it does not fit with all of them dropped.
    """
    dropped = 0
    while True:
        left_out = set(drops[:dropped])
        prompt = render(left_out)
        try:
            reply = await client.generate(
                prompt,
                image=image,
                model=model,
                sampling=sampling,
                whole=dropped < len(drops),
                retry=retry(left_out) if retry else None,
                **settings,
            )
        except PromptTooLong as error:
            if dropped == len(drops):
                raise
            surplus = len(prompt) * max(0.0, 1 - SHARE * error.limit / max(error.tokens, 1))
            while dropped < len(drops):
                surplus -= sizes[drops[dropped]] + 1
                dropped += 1
                if surplus <= 0:
                    break
        else:
            if dropped:
                client.mark("shortened")
            cut = reply.finish != "stop"
            return replace(reply, text=complete_sentences(reply.text)) if cut else reply


def from_the_end(lists: Sequence[Sequence[Any]]) -> list[int]:
    """Places in all lists laid end to end: each time the last of the longest, of equal ones the later."""
    lengths = [len(each) for each in lists]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    order = []
    for _ in range(sum(lengths)):
        longest = max(range(len(lengths)), key=lambda index: (lengths[index], index))
        lengths[longest] -= 1
        order.append(starts[longest] + lengths[longest])
    return order


def by_probability(values: Sequence[float | None]) -> list[int] | None:
    """Places from the least probable to the most, of equal ones the last first; None when one is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sorted(range(len(known)), key=lambda place: (known[place], -place))


def probabilities(scores: Sequence[Mapping[str, Any]] | None) -> dict[str, float]:
    """P(yes) of each text that a check kept; of a text checked twice, the lower one."""
    found: dict[str, float] = {}
    for score in scores or []:
        text, p_yes = score.get("remains", score["text"]), score.get("p_yes")
        if score["kept"] and p_yes is not None:
            found[text] = min(p_yes, found.get(text, p_yes))
    return found


def fitting(told: Sequence[str], most_sentences: int | None, most_words: int | None) -> int:
    """How many sentences, the first ones, are within both limits; at least one, however long."""
    count = len(told[:most_sentences])
    if most_words is not None:
        totals = accumulate(len(words(sentence)) for sentence in told)
        count = min(count, sum(total <= most_words for total in totals))
    return max(count, min(len(told), 1))


def hold(
    told: Sequence[str], most_sentences: int | None, most_words: int | None, mark: Callable[[str], None]
) -> list[str]:
    """The first sentences that are within both limits, none of them cut.

    Those left out are marked "shortened"; a first one that has too many words stays, marked "too_long".
    """
    kept = list(told[: fitting(told, most_sentences, most_words)])
    if len(kept) < len(told):
        mark("shortened")
    if most_words is not None and sum(len(words(sentence)) for sentence in kept) > most_words:
        mark("too_long")
    return kept


def limit(text: str, most_sentences: int | None, most_characters: int | None) -> str:
    """The first sentences that are within both limits, white space between them as it was.

    A first sentence that is too long ends after the last clause, or else the last word, that fits.
    """
    text = text.strip()
    spans = sentences(text)[:most_sentences]
    if most_characters is None:
        return text[: spans[-1].end].strip() if spans else text
    fitting = [end for _, end in spans if len(text[:end].rstrip()) <= most_characters]
    if fitting or not spans:
        return text[: max(fitting, default=0)].strip()
    first = text[slice(*spans[0])]
    parts = [first[slice(*span)] for span in clauses(first)]
    for count in range(len(parts) - 1, 0, -1):
        shorter = left([(part, place < count) for place, part in enumerate(parts)])
        if len(shorter) <= most_characters:
            return shorter
    ends = [end for _, end in words(first) if end < most_characters]
    return first[: max(ends, default=most_characters - 1)] + "…"
