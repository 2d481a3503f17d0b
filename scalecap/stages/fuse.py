"""Write the final caption from what was found true."""

from collections.abc import Collection
from typing import Any, ClassVar, Literal

from scalecap.stages import ModelClient, PromptTooLong, Role, Sampling, stage
from scalecap.stages.assemble import distinct
from scalecap.stages.shortening import by_probability, from_the_end, generate_fitting, probabilities
from scalecap.text.parsing import body
from scalecap.text.templates import Template


@stage
class Fuse:
    """Organises sentences and details into one caption, from texts alone.

    A row without a sentence asks nothing and falls back (`fallback: initial`, the column `initial`,
    or `fallback: empty`), marked "fallback". Without a detail there is nothing to join: the sentences are
    the caption, and nothing is asked. Where no request is left, sentences and details are, each once, marked
    "unasked" and "fallback".

    A prompt too long for the model loses details until it takes about three quarters of the context,
    marked "shortened": those with the lowest P(yes) first when `scores`, the side column of their
    check, tells it of all, else from the end, each time from the longer of the two lists (positions
    when equal). When it is still too long with no detail left, the sentences themselves are the
    caption, marked "fallback" too.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("context", "object_info", "position_info")}

    def __init__(
        self,
        *,
        prompt: Template,
        fallback: Literal["initial", "empty"] = "initial",
        model: Role = "llm",
        sampling: Sampling | None = None,
    ) -> None:
        self.prompt, self.fallback = prompt, fallback
        self.model, self.sampling = model, sampling

    def check(self, columns: Collection[str]) -> str | None:
        if self.fallback == "initial" and "initial" not in columns:
            return "fallback: initial needs the column: write `initial: init_caption` or `fallback: empty`"
        return None

    async def __call__(
        self,
        client: ModelClient,
        *,
        context: list[str],
        object_info: list[str],
        position_info: list[str],
        initial: str | None = None,
        scores: list[dict[str, Any]] | None = None,
    ) -> str:
        if not context:
            client.mark("fallback")
            return (initial or "") if self.fallback == "initial" else ""
        if not object_info and not position_info:
            return " ".join(context)
        if not client.allowed([1]):
            client.mark("fallback")
            return " ".join(distinct([*context, *object_info, *position_info]))
        # The same details twice are dropped from both at once.
        lists = [object_info] if object_info == position_info else [object_info, position_info]
        details = [detail for each in lists for detail in each]
        known = probabilities(scores)
        order = by_probability([known.get(detail) for detail in details])

        def render(dropped: Collection[int]) -> str:
            kept, first = [], 0
            for each in lists:
                kept.append("\n".join(text for at, text in enumerate(each, first) if at not in dropped))
                first += len(each)
            return self.prompt.render(context="\n".join(context), object_info=kept[0], position_info=kept[-1])

        try:
            reply = await generate_fitting(
                client,
                render,
                [len(detail) * (2 // len(lists)) for detail in details],
                from_the_end(lists) if order is None else order,
                model=self.model,
                sampling=self.sampling,
            )
        except PromptTooLong:
            client.mark("shortened")
            client.mark("fallback")
            return " ".join(context)
        return body(reply.text)
