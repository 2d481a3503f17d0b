"""Keep the texts that the picture supports."""

import math
import re
from typing import Any, ClassVar, Literal

from scalecap.prompts import Template
from scalecap.stages import Ask, Image, Role, Sampling, stage, together


@stage(side=["scores", "refuted"])
class Verify:
    """Asks yes or no about each text and keeps, in order, those answered yes.

    `mode: choose` reads the probability of yes from one token and keeps a text from `threshold` up;
    `mode: sampled` samples a reply and keeps a text when the reply's first word is yes. The side
    column `scores` has every text: {text, p_yes, kept, mass}, with p_yes and mass null when sampled.
    The side column `refuted` has the texts that were answered no.

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
        self, ask: Ask, *, texts: list[str], image: Image
    ) -> tuple[list[str], list[dict[str, Any]], list[str]]:
        scores = await together(self._score(ask, text, image) for text in texts)
        kept = [score["text"] for score in scores if score["kept"]]
        answered = [score for score in scores if self.mode == "sampled" or score["p_yes"] is not None]
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
