"""Rate texts by how likely they are as the reply to a prompt."""

import math
from typing import ClassVar

from scalecap.stages import Image, ModelClient, Role, stage, together
from scalecap.stages.scores import Score
from scalecap.stages.verify import check_threshold
from scalecap.text.templates import Template


@stage(side=["scores"])
class Likelihood:
    """Scores each text as the reply to one prompt about the image and keeps, in order, the likely ones.

    The likelihood is the product of the probabilities of the text's tokens, as in the language-prior-free
    verification of SelfVal (arXiv 2601.22451): a prompt for one object, without a caption before it, gives
    no context that makes an absent object likely. It is the joint probability of these tokens, without the
    end of the reply, so it is lower for longer texts. A text is kept from
    `threshold` up. The side column `scores` has {text, likelihood, kept}.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ()}

    def __init__(self, *, prompt: Template, threshold: float = 0.0, model: Role = "vlm") -> None:
        self.prompt, self.threshold, self.model = prompt, check_threshold(threshold), model

    async def __call__(
        self, client: ModelClient, *, texts: list[str], image: Image
    ) -> tuple[list[str], list[Score]]:
        allowed = client.allowed([1] * len(texts))
        scores = await together(self._score(client, text, image) for text in texts[:allowed])
        scores += [
            {"text": text, "likelihood": None, "kept": False, "checked": False} for text in texts[allowed:]
        ]
        return [score["text"] for score in scores if score["kept"]], scores

    async def _score(self, client: ModelClient, text: str, image: Image) -> Score:
        scored = await client.score(self.prompt.render(), text, image=image, model=self.model)
        likelihood = math.exp(math.fsum(token.logprob for token in scored.tokens))
        if math.isnan(likelihood):
            raise ValueError(
                "this engine returns raw logits only: remove engine.args.logprobs_mode=raw_logits"
            )
        return {"text": text, "likelihood": likelihood, "kept": likelihood >= self.threshold}
