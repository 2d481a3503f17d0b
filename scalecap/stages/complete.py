"""Ask a model about texts alone."""

from collections.abc import Collection, Mapping
from typing import Any

from scalecap.prompts import Template
from scalecap.shortening import from_the_end, generate_fitting, limit
from scalecap.stages import Ask, Columns, Role, Sampling, stage


@stage
class Complete:
    """Fills the prompt from columns (a list is joined by newlines) and asks without the picture.

    When all its variables are empty it asks nothing and writes "".

    `max_sentences` and `max_characters` hold the reply to a length: what is over is cut off at the end of
    a sentence (of a first one that is too long, at a clause or a word), marked "shortened". A prompt
    too long for the model loses items of its lists, from the end of the longest; marked "shortened".
    """

    def __init__(
        self,
        *,
        prompt: Template,
        max_sentences: int | None = None,
        max_characters: int | None = None,
        model: Role = "llm",
        sampling: Sampling | None = None,
    ) -> None:
        for name, least in (("max_sentences", max_sentences), ("max_characters", max_characters)):
            if least is not None and least < 1:
                raise ValueError(f"{name}: {least} must be 1 or more")
        self.prompt, self.model, self.sampling = prompt, model, sampling
        self.max_sentences, self.max_characters = max_sentences, max_characters

    async def __call__(self, ask: Ask, *, variables: Columns) -> str:
        if not any(as_text(value).strip() for value in variables.values()):
            return ""
        lists = [value for value in variables.values() if isinstance(value, list)]
        reply = await generate_fitting(
            ask,
            lambda dropped: self.prompt.render(**without(variables, dropped)),
            [len(str(item)) for value in lists for item in value],
            from_the_end(lists),
            model=self.model,
            sampling=self.sampling,
        )
        if self.max_sentences is None and self.max_characters is None:
            return reply.text
        text = limit(reply.text, self.max_sentences, self.max_characters)
        if text != reply.text.strip():
            ask.mark("shortened")
        return text


def without(variables: Mapping[str, Any], dropped: Collection[int]) -> dict[str, str]:
    """The variables as texts; `dropped` are places among the items of all lists, end to end."""
    texts, first = {}, 0
    for name, value in variables.items():
        if isinstance(value, list):
            kept = [item for place, item in enumerate(value, first) if place not in dropped]
            first += len(value)
            value = kept
        texts[name] = as_text(value)
    return texts


def as_text(value: Any) -> str:
    """A list's items on lines of their own, nothing for None, anything else as it prints."""
    if isinstance(value, list):
        return "\n".join(str(item) for item in value)
    return "" if value is None else str(value)
