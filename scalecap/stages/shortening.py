"""Shorten prompts to a model's context, and texts to a length."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from scalecap.stages import Generated, Image, ModelClient, PromptTooLong, Sampling
from scalecap.stages.scores import Score, remaining_text
from scalecap.text.parsing import complete_sentences
from scalecap.text.segmentation import clauses, join_kept, sentences, word_count, words

TARGET_SHARE = 0.75
"""Share of the context that a shortened prompt is to take."""


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
    """Generate; a prompt that does not fit the context is shortened and sent again, flagged "shortened".

    A truncated reply is cut after its last complete sentence.

    Args:
        render: returns the prompt without the pieces at the given positions.
        sizes: number of characters of each piece.
        drops: positions of pieces in the order in which they are dropped, until the prompt takes about
            three quarters of the context.
        retry: like `render`, for the prompt sent after a refused or empty reply.
        settings: further arguments of `ModelClient.generate`.

    Raises:
        PromptTooLong: the prompt does not fit even with all pieces dropped.
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
            surplus = len(prompt) * max(0.0, 1 - TARGET_SHARE * error.limit / max(error.tokens, 1))
            while dropped < len(drops):
                surplus -= sizes[drops[dropped]] + 1
                dropped += 1
                if surplus <= 0:
                    break
        else:
            if dropped:
                client.flag("shortened")
            cut = reply.finish != "stop"
            return replace(reply, text=complete_sentences(reply.text)) if cut else reply


def from_the_end(lists: Sequence[Sequence[Any]]) -> list[int]:
    """Positions in the concatenated lists: each time the last item of the longest list, the later on ties."""
    lengths = [len(each) for each in lists]
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    order = []
    for _ in range(sum(lengths)):
        longest = max(range(len(lengths)), key=lambda index: (lengths[index], index))
        lengths[longest] -= 1
        order.append(starts[longest] + lengths[longest])
    return order


def by_probability(values: Sequence[float | None]) -> list[int] | None:
    """Positions from least to most probable, the last first on ties; None if a value is unknown."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return sorted(range(len(known)), key=lambda place: (known[place], -place))


def probabilities(scores: Sequence[Score] | None) -> dict[str, float]:
    """P(yes) of each text that a check kept; the lowest of a text that was checked several times."""
    found: dict[str, float] = {}
    for score in scores or []:
        text, p_yes = remaining_text(score), score.get("p_yes")
        if score["kept"] and p_yes is not None:
            found[text] = min(p_yes, found.get(text, p_yes))
    return found


def keep_fitting(
    texts: Sequence[str], max_sentences: int | None, max_words: int | None, mark: Callable[[str], None]
) -> list[str]:
    """The leading sentences within both limits, none of them cut, and at least one.

    Sets the flag "shortened" if sentences are left out, and "too_long" if even the first has too many words.
    """
    totals = list(accumulate(word_count(sentence) for sentence in texts[:max_sentences]))
    fitting = [total for total in totals if max_words is None or total <= max_words]
    kept = list(texts[: max(1, len(fitting))])
    if len(kept) < len(texts):
        mark("shortened")
    if totals and not fitting:
        mark("too_long")
    return kept


def truncate(text: str, max_sentences: int | None, max_characters: int | None) -> str:
    """The leading sentences within both limits, with the original white space between them.

    A first sentence that is too long is cut after the last clause, or else the last word, that fits.
    """
    text = text.strip()
    spans = sentences(text)[:max_sentences]
    if max_characters is None:
        return text[: spans[-1].end].strip() if spans else text
    fitting = [end for _, end in spans if len(text[:end].rstrip()) <= max_characters]
    if fitting or not spans:
        return text[: max(fitting, default=0)].strip()
    first = text[slice(*spans[0])]
    parts = [first[slice(*span)] for span in clauses(first)]
    for count in range(len(parts) - 1, 0, -1):
        shorter = join_kept([(part, place < count) for place, part in enumerate(parts)])
        if len(shorter) <= max_characters:
            return shorter
    ends = [end for _, end in words(first) if end < max_characters]
    return first[: max(ends, default=max_characters - 1)] + "…"
