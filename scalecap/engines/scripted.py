"""An engine that answers from a script, for tests and dry runs."""

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence

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
"""A whole reply, or short for one: text for `generate`, an option or the probability of the first
option for `choose`, the log-probability of every word for `score`."""


class Scripted:
    """Answers by a function of the request (which may be async or raise EngineError), or by a list
    of lines in the order in which requests come. Token counts are counts of words.
    """

    def __init__(
        self,
        script: Sequence[Line] | Callable[[Request], Line | Awaitable[Line]],
        *,
        identity: str = "scripted",
        context_length: int | None = None,
        concurrency: int = 64,
        kv_tokens: int | None = None,
    ) -> None:
        self.identity = identity
        self.context_length = context_length
        self.concurrency = concurrency
        self.kv_tokens = kv_tokens
        if callable(script):
            self._answer = script
        else:
            lines = iter(script)

            def next_line(request: Request) -> Line:
                for line in lines:
                    return line
                raise EngineError("the script has no line left")

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
        raise EngineError(f"the script answers a request for text with {line!r}")

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
        raise EngineError(f"the script answers a choice among {request.options} with {line!r}")

    async def score(self, request: Score) -> Scored:
        line = await self._line(request)
        if isinstance(line, float) and not math.isnan(line):
            words = [match.span() for match in re.finditer(r"\s*\S+\s*$|\s*\S+|\s+", request.text)]
            usage = Usage(len(request.prompt.text.split()) + len(words))
            return Scored(tuple(Token(start, end, line) for start, end in words), usage)
        if isinstance(line, Scored):
            return line
        raise EngineError(f"the script answers a request for scores with {line!r}")

    async def close(self) -> None:
        """Nothing to free."""
