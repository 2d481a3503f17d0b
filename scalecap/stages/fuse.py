"""Write the final caption from what was found true."""

from collections.abc import Collection
from typing import ClassVar, Literal

from scalecap.prompts import Template
from scalecap.stages import Ask, PromptTooLong, Role, Sampling, stage


@stage
class Fuse:
    """Organises sentences and details into one caption, from texts alone.

    A row without a sentence asks nothing and falls back (`fallback: initial`, the column `initial`,
    or `fallback: empty`), marked "fallback".

    A prompt too long for the model loses details from the end, each time from the longer of the two
    lists (positions when equal), until it takes about three quarters of the context; marked
    "shortened". When no detail is left and it is still too long, the row fails.
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
        ask: Ask,
        *,
        context: list[str],
        object_info: list[str],
        position_info: list[str],
        initial: str | None = None,
    ) -> str:
        if not context:
            ask.mark("fallback")
            return (initial or "") if self.fallback == "initial" else ""
        objects, positions = list(object_info), list(position_info)
        shortened = False
        while True:
            prompt = self._render(context, objects, positions)
            try:
                reply = await ask.generate(prompt, model=self.model, sampling=self.sampling)
            except PromptTooLong as error:
                if not objects and not positions:
                    raise
                shortened = True
                surplus = len(prompt) * max(0.0, 1 - 0.75 * error.limit / max(error.tokens, 1))
                self._shorten(objects, positions, surplus)
            else:
                if shortened:
                    ask.mark("shortened")
                return reply.text

    def _render(self, context: list[str], objects: list[str], positions: list[str]) -> str:
        return self.prompt.render(
            context="\n".join(context), object_info="\n".join(objects), position_info="\n".join(positions)
        )

    @staticmethod
    def _shorten(objects: list[str], positions: list[str], surplus: float) -> None:
        """Drop at least one detail, and `surplus` characters' worth of them if there are so many."""
        while objects or positions:
            longer = objects if len(objects) > len(positions) else positions
            surplus -= len(longer.pop()) + 1
            if surplus <= 0:
                break
