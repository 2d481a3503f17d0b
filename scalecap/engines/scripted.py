"""An engine with scripted replies, for tests and dry runs."""

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineError,
    Generate,
    Generated,
    Reply,
    Request,
    Score,
    Scored,
    Token,
    Usage,
)
from scalecap.engines.reasoning import split_reasoning

Line = Reply | str | float
"""A reply, or a short form: text for `generate`, an option or the probability of the first option for
`choose`, the log-probability of every word for `score`."""


@dataclass(eq=False)
class Scripted:
    """Engine with scripted replies; its token counts are word counts."""

    script: Sequence[Line] | Callable[[Request], Line | Awaitable[Line]]
    """A function of the request, which may be async and may raise EngineError, or a list of replies in the
    order of the requests."""
    identity: str = field(default="scripted", kw_only=True)
    context_length: int | None = field(default=None, kw_only=True)
    concurrency: int = field(default=64, kw_only=True)
    kv_tokens: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if callable(self.script):
            self._answer = self.script
            return
        lines = iter(self.script)

        def next_line(request: Request) -> Line:
            for line in lines:
                return line
            raise EngineError("the script has no reply left")

        self._answer = next_line

    async def _line(self, request: Request) -> Line:
        line = self._answer(request)
        return await line if inspect.isawaitable(line) else line

    async def generate(self, request: Generate) -> Generated:
        line = await self._line(request)
        if isinstance(line, str):
            text, reasoning = split_reasoning(line)
            usage = Usage(len(request.prompt.text.split()), None, len(line.split()), len(reasoning.split()))
            return Generated(text, "stop", usage, reasoning)
        if isinstance(line, Generated):
            return line
        raise EngineError(
            f"the script answers a `generate` request with {line!r}: expected text or Generated"
        )

    async def choose(self, request: Choose) -> Chosen:
        line = await self._line(request)
        usage = Usage(len(request.prompt.text.split()), None, 1)
        if isinstance(line, str) and line in request.options:
            return Chosen(tuple(float(option == line) for option in request.options), usage=usage)
        if isinstance(line, float) and 0 <= line <= 1:
            rest = (1 - line) / (len(request.options) - 1)
            return Chosen((line, *(rest for _ in request.options[1:])), usage=usage)
        if isinstance(line, Chosen):
            return line
        raise EngineError(
            f"the script answers a choice among {request.options} with {line!r}:"
            " expected an option, a probability or Chosen"
        )

    async def score(self, request: Score) -> Scored:
        line = await self._line(request)
        if isinstance(line, float) and not math.isnan(line):
            words = [match.span() for match in re.finditer(r"\s*\S+\s*$|\s*\S+|\s+", request.text)]
            usage = Usage(len(request.prompt.text.split()) + len(words))
            return Scored(tuple(Token(start, end, line) for start, end in words), usage)
        if isinstance(line, Scored):
            return line
        raise EngineError(f"the script answers a `score` request with {line!r}: expected a number or Scored")

    async def close(self) -> None:
        """Frees nothing."""
