"""Keep the texts that the picture supports."""

import re
from typing import Any, ClassVar, Literal

from scalecap.prompts import Template
from scalecap.stages import Ask, Image, Role, Sampling, stage, together


@stage(side=["scores"])
class Verify:
    """Asks yes or no about each text and keeps, in order, those answered yes.

    `mode: choose` reads the probability of yes from one token and keeps a text from `threshold` up;
    `mode: sampled` samples a reply and keeps a text when the reply's first word is yes. The side
    column `scores` has every text: {text, p_yes, kept}, with p_yes null when sampled.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("text",)}

    def __init__(
        self,
        *,
        prompt: Template,
        threshold: float = 0.5,
        mode: Literal["choose", "sampled"] = "choose",
        model: Role = "vlm",
        sampling: Sampling | None = None,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: {threshold} is no probability (0 to 1)")
        self.prompt, self.threshold, self.mode = prompt, threshold, mode
        self.model, self.sampling = model, sampling

    async def __call__(
        self, ask: Ask, *, texts: list[str], image: Image
    ) -> tuple[list[str], list[dict[str, Any]]]:
        scores = await together(self._score(ask, text, image) for text in texts)
        return [score["text"] for score in scores if score["kept"]], scores

    async def _score(self, ask: Ask, text: str, image: Image) -> dict[str, Any]:
        prompt = self.prompt.render(text=text)
        if self.mode == "sampled":
            reply = await ask.generate(prompt, image=image, model=self.model, sampling=self.sampling)
            return {"text": text, "p_yes": None, "kept": says_yes(reply.text)}
        chosen = await ask.choose(prompt, ("yes", "no"), image=image, model=self.model)
        p_yes = chosen.probabilities[0]
        return {"text": text, "p_yes": p_yes, "kept": p_yes >= self.threshold}


def says_yes(reply: str) -> bool:
    """Whether the reply's first word is yes, whatever its case and marks around it."""
    word = re.search(r"\w+", reply)
    return word is not None and word.group().casefold() == "yes"
