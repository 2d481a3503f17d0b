"""Keep the texts that the picture supports."""

import math
import re
from typing import Any, ClassVar, Literal

from scalecap.prompts import Template
from scalecap.stages import Ask, Image, Role, Sampling, Views, stage, together


@stage(side=["scores", "refuted"])
class Verify:
    """Asks yes or no about each text and keeps, in order, those answered yes.

    `mode: choose` reads the probability of yes from one token and keeps a text from `threshold` up;
    `mode: sampled` samples a reply and keeps a text when the reply's first word is yes. The side
    column `scores` has every text: {text, p_yes, kept, mass}, with p_yes and mass null when sampled.
    The side column `refuted` has the texts that were answered no.

    `views` is a column of regions, one a text: a text is checked against its own in place of the picture.
    One without is not asked about if `before`, the side column `scores` of an earlier check of the same
    texts, has its verdict; without `before` it is checked against the picture.

    `mass` is the probability of yes and no together (null where an engine can't tell it). Below the run's
    `min_mass` the model would say something else: the text is not kept, p_yes is null, and the row is
    marked "unanswered".

    `ensemble` is a list of further prompts. The probability is then the mean over all of them, each of
    which must be answered, and the mass is the smallest; when sampled, more than half must say yes.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("text",), "ensemble": ("text",)}

    def __init__(
        self,
        *,
        prompt: Template,
        ensemble: list[Template] | None = None,
        threshold: float = 0.5,
        mode: Literal["choose", "sampled"] = "choose",
        model: Role = "vlm",
        sampling: Sampling | None = None,
    ) -> None:
        self.prompts = [prompt, *(ensemble or [])]
        self.threshold, self.mode = probability(threshold), mode
        self.model, self.sampling = model, sampling

    async def __call__(
        self,
        ask: Ask,
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
        scores = list(before or [{}] * len(texts))
        asked = [place for place in range(len(texts)) if before is None or own[place] is not None]
        for place, score in zip(
            asked,
            await together(self._score(ask, texts[place], own[place] or image) for place in asked),
            strict=True,
        ):
            scores[place] = score
        answered = [score for score in scores if self.mode == "sampled" or score["p_yes"] is not None]
        kept = [score["text"] for score in scores if score["kept"]]
        return kept, scores, [score["text"] for score in answered if not score["kept"]]

    async def _score(self, ask: Ask, text: str, image: Image) -> dict[str, Any]:
        prompts = [prompt.render(text=text) for prompt in self.prompts]
        if self.mode == "sampled":
            replies = await together(
                ask.generate(prompt, image=image, model=self.model, sampling=self.sampling)
                for prompt in prompts
            )
            yes = sum(says_yes(reply.text) for reply in replies)
            return {"text": text, "p_yes": None, "kept": 2 * yes > len(replies), "mass": None}
        answers = await together(
            ask.choose(prompt, ("yes", "no"), image=image, model=self.model) for prompt in prompts
        )
        mass = min((each for chosen in answers if (each := chosen.known_mass) is not None), default=None)
        if not all(chosen.answered for chosen in answers):
            return {"text": text, "p_yes": None, "kept": False, "mass": mass}
        p_yes = math.fsum(chosen.probabilities[0] for chosen in answers) / len(answers)
        return {"text": text, "p_yes": p_yes, "kept": p_yes >= self.threshold, "mass": mass}


def probability(threshold: float) -> float:
    """A threshold that makes sense; ValueError for another."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: {threshold} is no probability (0 to 1)")
    return threshold


def says_yes(reply: str) -> bool:
    """Whether the reply's first word is yes, whatever its case and marks around it."""
    word = re.search(r"[^\W_]+", reply)
    return word is not None and word.group().casefold() == "yes"
