"""Gather one kind of information out of the details."""

from collections.abc import Collection
from typing import Any, ClassVar

from scalecap.prompts import Template
from scalecap.shortening import by_probability, from_the_end, generate_fitting
from scalecap.stages import Ask, PromptTooLong, Role, Sampling, stage
from scalecap.stages.group_details import details


@stage
class Collect:
    """Asks for one kind of information in blocks of details, without the picture; a line is a text.

    The prompt's `blocks` has each sentence that has details, with them: "Sentence: …", "Details about
    the cat: …", "Details about the position of the cat: …". Without a detail nothing is asked.

    A prompt too long for the model loses details, those with the lowest P(yes) first (from the end
    where one has none), until it takes about three quarters of the context; marked "shortened".
    When a single one is too long, there is nothing.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("blocks",)}

    def __init__(self, *, prompt: Template, model: Role = "llm", sampling: Sampling | None = None) -> None:
        self.prompt, self.model, self.sampling = prompt, model, sampling

    async def __call__(self, ask: Ask, *, blocks: list[dict[str, Any]]) -> list[str]:
        found = details(blocks)
        if not found:
            return []
        drops = by_probability([detail["p_yes"] for detail in found]) or from_the_end([found])
        try:
            reply = await generate_fitting(
                ask,
                lambda dropped: self.prompt.render(blocks=told(blocks, dropped)),
                [len(detail["text"]) for detail in found],
                drops[:-1],
                model=self.model,
                sampling=self.sampling,
            )
        except PromptTooLong:
            ask.mark("shortened")
            return []
        return [line.strip() for line in reply.text.splitlines() if line.strip()]


def told(blocks: list[dict[str, Any]], dropped: Collection[int] = ()) -> str:
    """The blocks as lines, without the details at these places and without sentences that have none."""
    lines: list[str] = []
    place = 0
    for block in blocks:
        under = []
        for detail in block["details"]:
            where = "the position of " if detail["position"] else ""
            if place not in dropped:
                under.append(f"Details about {where}{detail['object']}: {detail['text']}")
            place += 1
        if under:
            lines += [f"Sentence: {block['sentence']}", *under]
    return "\n".join(lines)
