"""Ask a model about texts alone."""

from typing import Any

from scalecap.prompts import Template
from scalecap.stages import Ask, Columns, Role, Sampling, stage


@stage
class Complete:
    """Fills the prompt from columns (a list is joined by newlines) and asks without the picture.

    When all its variables are empty it asks nothing and writes "".
    """

    def __init__(self, *, prompt: Template, model: Role = "llm", sampling: Sampling | None = None) -> None:
        self.prompt, self.model, self.sampling = prompt, model, sampling

    async def __call__(self, ask: Ask, *, variables: Columns) -> str:
        values = {name: as_text(value) for name, value in variables.items()}
        if not any(value.strip() for value in values.values()):
            return ""
        prompt = self.prompt.render(**values)
        return (await ask.generate(prompt, model=self.model, sampling=self.sampling)).text


def as_text(value: Any) -> str:
    """A list's items on lines of their own, nothing for None, anything else as it prints."""
    if isinstance(value, list):
        return "\n".join(str(item) for item in value)
    return "" if value is None else str(value)
