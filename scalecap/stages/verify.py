"""Keep the texts that the picture supports."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from scalecap.engines.base import EngineDead, EngineError
from scalecap.stages import (
    Image,
    ModelClient,
    PromptTooLong,
    Role,
    Sampling,
    Views,
    stage,
    together,
    verdicts,
)
from scalecap.text.templates import Template


@stage(side=["scores", "refuted"])
class Verify:
    """Asks yes or no about each text and keeps, in order, those answered yes.

    `mode: choose` reads the probability of yes from one token and keeps a text from `threshold` up;
    `mode: sampled` samples a reply and keeps a text when the reply's first word is yes. The side
    column `scores` has every text: {text, p_yes, kept, mass}, with p_yes and mass null when sampled.
    The side column `refuted` has the texts that were answered no.

    `batch: k` asks about k texts in one request, by `batch_prompt`, whose `texts` lists them by number: one
    reply, greedy, with a line "1. yes" or "1. no" each. The picture is then paid for twice in k checks, not
    k times, which matters where it is not kept between requests (hosted servers, models with hybrid
    attention). P(yes) is read by scoring the verdicts as the reply: the probability of "yes" at its place, or
    1 less that of "no". It is the model's certainty of its own words, each read after the verdicts before it,
    which sway it; it is not P(yes) of a text asked about alone, and a threshold for one does not hold for the
    other. Where the engine can't score, the words decide, p_yes is null and the row is marked "unscored". A
    reply without a verdict on each text, or a prompt that is too long, has them asked about alone, marked
    "asked_alone". `mass` is null.

    `views` is a column of regions, one a text: a text is checked against its own in place of the picture.
    One without is not asked about if `before`, the side column `scores` of an earlier check of the same
    texts, has its verdict; without `before` it is checked against the picture.

    `mass` is the probability of yes and no together (null where an engine can't tell it). Below the run's
    `min_mass` the model would say something else: the text is not kept, p_yes is null, and the row is
    marked "unanswered".

    A text that is empty, or that the step's limit or the pipeline's budget left unasked, is neither kept nor
    refuted; its record has `asked: false`.

    `ensemble` is a list of further prompts. The probability is then the mean over all of them, each of
    which must be answered, and the mass is the smallest; when sampled, more than half must say yes.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {
        "prompt": ("text",),
        "ensemble": ("text",),
        "batch_prompt": ("texts",),
    }

    def __init__(
        self,
        *,
        prompt: Template,
        ensemble: list[Template] | None = None,
        threshold: float = 0.5,
        mode: Literal["choose", "sampled"] = "choose",
        batch: int = 1,
        batch_prompt: Template | None = None,
        model: Role = "vlm",
        sampling: Sampling | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch: {batch} must be 1 or more")
        if batch > 1 and batch_prompt is None:
            raise ValueError("batch needs `batch_prompt: ${prompts.verify_batch}`")
        if batch > 1 and (mode != "choose" or ensemble):
            raise ValueError("batch goes with neither `mode: sampled` nor `ensemble`")
        self.batch, self.batch_prompt = batch, batch_prompt
        self.prompts = [prompt, *(ensemble or [])]
        self.threshold, self.mode = probability(threshold), mode
        self.model, self.sampling = model, sampling

    async def __call__(
        self,
        client: ModelClient,
        *,
        texts: list[str],
        image: Image,
        views: Views | None = None,
        before: list[dict[str, Any]] | None = None,
    ) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        own = views or [None] * len(texts)
        if len(own) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(own)} views of them")
        if before is not None and [score["text"] for score in before] != texts:
            raise ValueError("before: the earlier check did not read the same texts")
        asked = [
            place
            for place, text in enumerate(texts)
            if text.strip() and (before is None or own[place] is not None)
        ]
        asked = asked[: client.allowed(self._costs([own[place] is None for place in asked]))]
        joined = [place for place in asked if own[place] is None] if self.batch > 1 else []
        groups = [joined[at : at + self.batch] for at in range(0, len(joined), self.batch)]
        groups += [[place] for place in asked if place not in set(joined)]
        found = await together(
            self._group(client, [texts[place] for place in group], own[group[0]] or image) for group in groups
        )
        answers = {place: _Answer(unasked(text), False) for place, text in enumerate(texts)}
        answers |= {place: _Answer(score, _said_no(score)) for place, score in enumerate(before or [])}
        for group, its in zip(groups, found, strict=True):
            answers |= zip(group, its, strict=True)
        ordered = [answers[place] for place in range(len(texts))]
        return (
            [answer.score["text"] for answer in ordered if answer.score["kept"]],
            [answer.score for answer in ordered],
            [answer.score["text"] for answer in ordered if answer.no],
        )

    def _costs(self, whole: Sequence[bool]) -> list[int]:
        """Requests of each text, by whether it has no view of its own; those of a batch are its first's."""
        if self.batch == 1:
            return [len(self.prompts)] * len(whole)
        costs, joined = [], 0
        for joins in whole:
            heads = joins and joined % self.batch == 0
            joined += joins
            costs.append(2 if heads and joined < sum(whole) else int(heads or not joins))
        return costs

    async def _group(self, client: ModelClient, texts: list[str], image: Image) -> "list[_Answer]":
        """The answers about texts that are asked about in one request, if there are several."""
        if len(texts) == 1:
            return [await self._score(client, texts[0], image)]
        assert self.batch_prompt is not None
        prompt = self.batch_prompt.render(texts=verdicts.numbered(texts))
        sampling = Sampling(temperature=0, max_tokens=8 * len(texts) + 16)
        try:
            reply = await client.generate(prompt, image=image, model=self.model, sampling=sampling)
        except PromptTooLong:
            said = None
        else:
            said = verdicts.read(reply.text, len(texts))
        if said is None:
            client.mark("asked_alone")
            return await together(self._score(client, text, image) for text in texts)
        forced, words = verdicts.written(said)
        try:
            scored = await client.score(prompt, forced, image=image, model=self.model)
            ps = verdicts.p_yes(scored, said, words)
        except EngineDead:
            raise
        except EngineError:
            ps = None
        if ps is None:
            client.mark("unscored")
        answers = []
        for text, yes, p in zip(texts, said, ps or itertools.repeat(None, len(texts)), strict=True):
            kept = yes if p is None else p >= self.threshold
            answers.append(_Answer({"text": text, "p_yes": p, "kept": kept, "mass": None}, not kept))
        return answers

    async def _score(self, client: ModelClient, text: str, image: Image) -> "_Answer":
        prompts = [prompt.render(text=text) for prompt in self.prompts]
        if self.mode == "sampled":
            replies = await together(
                client.generate(prompt, image=image, model=self.model, sampling=self.sampling)
                for prompt in prompts
            )
            yes = sum(says_yes(reply.text) for reply in replies)
            kept = 2 * yes > len(replies)
            return _Answer({"text": text, "p_yes": None, "kept": kept, "mass": None}, not kept)
        answers = await together(
            client.choose(prompt, ("yes", "no"), image=image, model=self.model) for prompt in prompts
        )
        mass = min((each for chosen in answers if (each := chosen.known_mass) is not None), default=None)
        if not all(chosen.answered for chosen in answers):
            return _Answer({"text": text, "p_yes": None, "kept": False, "mass": mass}, False)
        p_yes = math.fsum(chosen.probabilities[0] for chosen in answers) / len(answers)
        score = {"text": text, "p_yes": p_yes, "kept": p_yes >= self.threshold, "mass": mass}
        return _Answer(score, _said_no(score))


class _Answer(NamedTuple):
    """What was answered about one text."""

    score: dict[str, Any]
    no: bool
    """It was no, which is less than not yes: the model may have said something else."""


def _said_no(score: Mapping[str, Any]) -> bool:
    """Whether the record of a check by probability tells of a no."""
    return not score["kept"] and score["p_yes"] is not None


def unasked(text: str) -> dict[str, Any]:
    """The record of a text that was not asked about."""
    return {"text": text, "p_yes": None, "kept": False, "mass": None, "asked": False}


def probability(threshold: float) -> float:
    """A threshold that makes sense; ValueError for another."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: {threshold} is no probability (0 to 1)")
    return threshold


def says_yes(reply: str) -> bool:
    """Whether the reply's first word is yes, whatever its case and marks around it."""
    word = re.search(r"[^\W_]+", reply)
    return word is not None and word.group().casefold() == "yes"
