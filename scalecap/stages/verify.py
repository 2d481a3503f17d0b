"""Keep the texts that the image supports."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from scalecap.engines.base import Unsupported
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
from scalecap.stages.scores import Score, unchecked_score
from scalecap.text.templates import Template


@stage(side=["scores", "refuted"])
@dataclass(kw_only=True, eq=False)
class Verify:
    """Asks yes or no about each text and keeps, in order, those answered yes.

    `mode: choose` reads the probability of yes from one token and keeps a text from `threshold` up;
    `mode: sampled` samples a reply and keeps a text when the reply's first word is yes; if it is neither
    yes nor no, the row is flagged "unanswered". Prompts in any language ask for one of these two words. The
    side column `scores` has every text: {text, p_yes, kept, mass}, with p_yes and mass null when sampled.
    The side column `refuted` has the texts that were answered no.

    `batch: k` asks about k texts in one request with `batch_prompt`, whose `texts` lists them by number; the
    reply, greedy, has one line "1. yes" or "1. no" each. The image is then processed twice for k checks
    instead of k times, which pays off without a prefix cache (hosted servers, models with hybrid attention).
    P(yes) is read by scoring the reply up to its last verdict: the probability of "yes" at its place, or 1
    minus that of "no". It is the model's confidence in its own words, given the verdicts before them, not
    P(yes) of a text checked alone, so thresholds do not carry over from one to the other. If the engine can't
    score, the words decide, p_yes is null and the row is flagged "unscored". If the reply lacks a verdict, or
    the prompt is too long, each text is checked alone, flagged "unbatched". `mass` is null.

    `views` is a column of regions, one per text: a text is checked against its own region instead of the
    whole image. A text without a region is not checked again if `before`, the side column `scores` of an
    earlier check of the same texts, is given: the threshold is applied to its probability there, or its
    verdict stays if it has none. Without `before` it is checked against the image.

    `mass` is the probability of yes and no together (null where an engine does not report it). Below the
    run's `min_mass` the model would answer something else: the text is not kept, p_yes is null, and the row
    is flagged "unanswered".

    A text that is empty, or beyond the step's limit or the pipeline's budget, is neither kept nor refuted;
    its record has `checked: false`.

    `ensemble` is a list of further prompts. The probability is then the mean over all of them, each of
    which must be answered, and the mass is the smallest; when sampled, more than half must say yes.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {
        "prompt": ("text",),
        "ensemble": ("text",),
        "batch_prompt": ("texts",),
    }

    prompt: Template
    ensemble: list[Template] | None = None
    threshold: float = 0.5
    mode: Literal["choose", "sampled"] = "choose"
    batch: int = 1
    batch_prompt: Template | None = None
    model: Role = "vlm"
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch: expected at least 1, got {self.batch}")
        if self.batch > 1 and self.batch_prompt is None:
            raise ValueError("batch requires `batch_prompt: ${prompts.verify_batch}`")
        if self.batch > 1 and (self.mode != "choose" or self.ensemble):
            raise ValueError("batch can't be combined with `mode: sampled` or `ensemble`")
        check_threshold(self.threshold)
        self.prompts = [self.prompt, *(self.ensemble or [])]

    async def __call__(
        self,
        client: ModelClient,
        *,
        texts: list[str],
        image: Image,
        views: Views | None = None,
        before: list[Score] | None = None,
    ) -> tuple[list[str], list[Score], list[str]]:
        own = views or [None] * len(texts)
        if len(own) != len(texts):
            raise ValueError(f"expected one view per text, got {len(own)} views for {len(texts)} texts")
        if before is not None and [score["text"] for score in before] != texts:
            raise ValueError("before: the earlier check did not read the same texts")
        to_check = [
            place
            for place, text in enumerate(texts)
            if text.strip() and (before is None or own[place] is not None)
        ]
        to_check = to_check[: client.allowed(self._costs([own[place] is None for place in to_check]))]
        batched = [place for place in to_check if own[place] is None] if self.batch > 1 else []
        groups = [batched[start : start + self.batch] for start in range(0, len(batched), self.batch)]
        groups += [[place] for place in to_check if place not in set(batched)]
        results = await together(
            self._group(client, [texts[place] for place in group], own[group[0]] or image) for group in groups
        )
        answers = {place: _Answer(unchecked_score(text), False) for place, text in enumerate(texts)}
        answers |= {place: self._judge_again(score) for place, score in enumerate(before or [])}
        for group, of_group in zip(groups, results, strict=True):
            answers |= zip(group, of_group, strict=True)
        ordered = [answers[place] for place in range(len(texts))]
        return (
            [answer.score["text"] for answer in ordered if answer.score["kept"]],
            [answer.score for answer in ordered],
            [answer.score["text"] for answer in ordered if answer.no],
        )

    def _judge_again(self, score: Score) -> "_Answer":
        """The answer of an earlier check by this one's threshold."""
        p_yes = score.get("p_yes")
        judged = score if p_yes is None else {**score, "kept": p_yes >= self.threshold}
        return _Answer(judged, _answered_no(judged))

    def _costs(self, whole: Sequence[bool]) -> list[int]:
        """Requests of each text; those of a batch count for its first text.

        Args:
            whole: whether a text has no view of its own and is checked against the whole image.
        """
        if self.batch == 1:
            return [len(self.prompts)] * len(whole)
        costs, batched = [], 0
        for in_batch in whole:
            first = in_batch and batched % self.batch == 0
            batched += in_batch
            costs.append(2 if first and batched < sum(whole) else int(first or not in_batch))
        return costs

    async def _group(self, client: ModelClient, texts: list[str], image: Image) -> "list[_Answer]":
        """The answers about a group of texts, checked in one request if there are several."""
        if len(texts) == 1:
            return [await self._score(client, texts[0], image)]
        assert self.batch_prompt is not None
        prompt = self.batch_prompt.render(texts=verdicts.number_lines(texts))
        sampling = Sampling(temperature=0, max_tokens=8 * len(texts) + 16)
        try:
            reply = await client.generate(prompt, image=image, model=self.model, sampling=sampling)
        except PromptTooLong:
            answered = None
        else:
            written = reply.text.strip()
            answered = verdicts.parse(written, len(texts))
        if answered is None:
            client.flag("unbatched")
            return await together(self._score(client, text, image) for text in texts)
        # As the model wrote them: to a model that writes "Yes", "yes" is improbable.
        written = written[: max(word.end for _, word in answered)]
        try:
            scored = await client.score(prompt, written, image=image, model=self.model)
            ps = verdicts.p_yes(scored, answered)
        except (Unsupported, PromptTooLong):
            ps = None
        if ps is None:
            client.flag("unscored")
        answers = []
        for text, (yes, _), p in zip(texts, answered, ps or itertools.repeat(None, len(texts)), strict=True):
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
            said = [yes_or_no(reply.text) for reply in replies]
            for _ in range(said.count(None)):
                client.flag("unanswered")
            kept = 2 * said.count(True) > len(said)
            no = not kept and None not in said
            return _Answer({"text": text, "p_yes": None, "kept": kept, "mass": None}, no)
        answers = await together(
            client.choose(prompt, ("yes", "no"), image=image, model=self.model) for prompt in prompts
        )
        mass = min((each for chosen in answers if (each := chosen.known_mass) is not None), default=None)
        if not all(chosen.answered for chosen in answers):
            return _Answer({"text": text, "p_yes": None, "kept": False, "mass": mass}, False)
        p_yes = math.fsum(chosen.probabilities[0] for chosen in answers) / len(answers)
        score: Score = {"text": text, "p_yes": p_yes, "kept": p_yes >= self.threshold, "mass": mass}
        return _Answer(score, _answered_no(score))


class _Answer(NamedTuple):
    """The answer about one text."""

    score: Score
    no: bool
    """Whether the answer was no; it may also be neither yes nor no."""


def _answered_no(score: Score) -> bool:
    """Whether a record with a probability is that of a no."""
    return not score["kept"] and score.get("p_yes") is not None


def check_threshold(threshold: float) -> float:
    """The threshold; ValueError unless it is a probability."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a probability between 0 and 1, got {threshold}")
    return threshold


def yes_or_no(reply: str) -> bool | None:
    """Whether the reply's first word is yes, ignoring case and punctuation; None if it is neither."""
    word = re.search(r"[^\W_]+", reply)
    return {"yes": True, "no": False}.get(word.group().casefold()) if word else None
