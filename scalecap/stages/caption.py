"""Ask about the whole picture."""

from typing import ClassVar

from scalecap.prompts import Template
from scalecap.stages import Ask, Image, Role, Sampling, stage


@stage
class Caption:
    """One prompt to the model with the picture."""

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ()}

    def __init__(self, *, prompt: Template, model: Role = "vlm", sampling: Sampling | None = None) -> None:
        self.prompt, self.model, self.sampling = prompt, model, sampling

    async def __call__(self, ask: Ask, *, image: Image) -> str:
        reply = await ask.generate(
            self.prompt.render(), image=image, model=self.model, sampling=self.sampling
        )
        return reply.text
