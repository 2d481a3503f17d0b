"""Ask the questions, each with the picture."""

from typing import ClassVar

from scalecap.prompts import Template
from scalecap.stages import Ask, Image, Role, Sampling, stage, together


@stage
class Answer:
    """One answer a question, in the same order; all are asked at once."""

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("question",)}

    def __init__(
        self,
        *,
        prompt: Template = Template("{{ question }}"),  # noqa: B008 (never changed)
        model: Role = "vlm",
        sampling: Sampling | None = None,
    ) -> None:
        self.prompt, self.model, self.sampling = prompt, model, sampling

    async def __call__(self, ask: Ask, *, questions: list[str], image: Image) -> list[str]:
        replies = await together(
            ask.generate(
                self.prompt.render(question=question),
                image=image,
                model=self.model,
                sampling=self.sampling,
            )
            for question in questions
        )
        return [reply.text for reply in replies]
