"""Ask a model about each of several texts alone."""

from typing import ClassVar

from scalecap.prompts import Template
from scalecap.stages import Ask, Role, Sampling, stage, together


@stage
class CompleteEach:
    """One reply a sentence, in the same order, without the picture; all are asked at once."""

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("sentence",)}

    def __init__(self, *, prompt: Template, model: Role = "llm", sampling: Sampling | None = None) -> None:
        self.prompt, self.model, self.sampling = prompt, model, sampling

    async def __call__(self, ask: Ask, *, sentences: list[str]) -> list[str]:
        replies = await together(
            ask.generate(self.prompt.render(sentence=sentence), model=self.model, sampling=self.sampling)
            for sentence in sentences
        )
        return [reply.text for reply in replies]
