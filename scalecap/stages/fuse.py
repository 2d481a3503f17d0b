"""Fuse what was found true into the final caption."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from scalecap.stages import ModelClient, PromptTooLong, Role, Sampling, stage
from scalecap.stages.assemble import distinct
from scalecap.stages.scores import Score
from scalecap.stages.shortening import by_probability, from_the_end, generate_fitting, probabilities
from scalecap.text.parsing import body
from scalecap.text.refusals import refuses
from scalecap.text.templates import Template


@stage
@dataclass(kw_only=True, eq=False)
class Fuse:
    """Organises sentences and details into one caption, without the image.

    A row without a sentence falls back to the column `initial` (`fallback: initial`) or to an empty text
    (`fallback: empty`), flagged "fallback", and sends no request. Without a detail the sentences are the
    caption, also without a request. If no request is left in the budget (flagged "over_limit"), or the reply
    is a refusal or empty, the caption is all distinct sentences and details, flagged "fallback".

    A prompt too long for the model loses details until it takes about three quarters of the context,
    flagged "shortened": those with the lowest P(yes) first if `scores`, the side column of their check, has
    it for all, else from the end of the longer list (positions on ties). If it is too long even without
    details, the sentences are the caption, also flagged "fallback".
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("context", "object_info", "position_info")}

    prompt: Template
    fallback: Literal["initial", "empty"] = "initial"
    model: Role = "llm"
    sampling: Sampling | None = None

    def check(self, columns: Collection[str]) -> str | None:
        if self.fallback == "initial" and "initial" not in columns:
            return "fallback: initial requires the column: add `initial: init_caption` or `fallback: empty`"
        return None

    async def __call__(
        self,
        client: ModelClient,
        *,
        context: list[str],
        object_info: list[str],
        position_info: list[str],
        initial: str | None = None,
        scores: list[Score] | None = None,
    ) -> str:
        if not context:
            client.flag("fallback")
            return (initial or "") if self.fallback == "initial" else ""
        if not object_info and not position_info:
            return " ".join(context)
        unfused = distinct([*context, *object_info, *position_info])
        if not client.allowed([1]):
            client.flag("fallback")
            return " ".join(unfused)
        # A list that is given twice loses its details in both places at once.
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
            client.flag("shortened")
            client.flag("fallback")
            return " ".join(context)
        if not reply.text.strip() or refuses(reply.text):
            client.flag("fallback")
            return " ".join(unfused)
        return body(reply.text)
