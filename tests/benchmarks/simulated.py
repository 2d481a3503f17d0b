"""An engine in virtual time, with a scheduler and a KV cache as vLLM has them: exact counts in no time.

Each step takes up to `budget` tokens: one of each running request, then prompts of waiting ones in their
order. A prompt's tokens are in blocks of which only whole ones are shared, by requests about the same
image. Blocks that nobody uses any more stay until others need them, the longest unused first, a request's
last block before its first. Where none is left, the request that came last is computed again later.

A step costs a fixed time, a time a token and a time an image that is encoded. What these are for a model of
a certain size was read from measurements (`COSTS`): it is a model of the engine, not a measurement.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineError,
    Generate,
    Generated,
    Request,
    Score,
    Scored,
    Usage,
)

_TURNS = 100
"""Of the event loop, after which every answered request has led to those that follow from it."""


class Costs(NamedTuple):
    """Seconds of a step, of each of its tokens, and of each thousand tokens of images that it encodes."""

    step: float
    token: float
    encoding: float


COSTS = {
    "85M on two cores": Costs(0.03, 0.00116, 2.9),
    "6M on two cores": Costs(0.02, 0.00012, 0.23),
    "3B on a GPU": Costs(0.006, 0.000015, 0.014),
}
"""The first two are README.md's measurements of the CPU build, the third its estimate of an H100."""


class Shape(NamedTuple):
    """Tokens of what requests consist of."""

    image: int
    system: int = 20
    text: int = 75


@dataclass
class _Job:
    """A request in the engine."""

    prompt: int
    shared: int
    """Tokens of the prompt that requests about the image have in common."""
    image: str | None
    wanted: int
    answered: asyncio.Future[None]
    computed: int = 0
    written: int = 0
    blocks: list[int] = field(default_factory=list)
    cached: int | None = None
    priority: int = 0

    @property
    def known(self) -> int:
        """Tokens that are to be computed before another is written."""
        return self.prompt + self.written


class Simulated:
    """Answers by `say`, a function of the request to its reply and the number of tokens that it has."""

    def __init__(
        self,
        say: Callable[[Generate], tuple[str, int]],
        shape: Shape,
        *,
        blocks: int,
        block: int = 16,
        budget: int = 4096,
        concurrency: int = 32,
        priority: Callable[[Request], int] | None = None,
    ) -> None:
        """Of the waiting requests that with the lowest `priority` goes first, else that which came first."""
        self.identity, self.context_length = "simulated", None
        self.concurrency, self.kv_tokens = concurrency, blocks * block
        self.requests = 0
        self.steps = 0
        self.batches = 0
        """Requests of all steps."""
        self.tokens = 0
        """Computed, of prompts and replies."""
        self.computed = 0
        """Of these: of prompts."""
        self.preempted = 0
        """Requests whose blocks others needed."""
        self.encoded: set[str] = set()
        """Images, each once."""
        self._say, self._shape, self._block, self._budget = say, shape, block, budget
        self._priority = priority
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        """Blocks of no running request, the next to be taken first."""
        self._users = [0] * blocks
        self._places: dict[tuple[str, int], int] = {}
        """Blocks with an image's tokens, by its hash and the block's number in the prompt."""
        self._contents: dict[int, tuple[str, int]] = {}
        self._waiting: deque[_Job] = deque()
        self._running: list[_Job] = []
        self._working: asyncio.Task[None] | None = None

    def seconds(self, costs: Costs) -> float:
        """What all steps so far took."""
        encoded = len(self.encoded) * self._shape.image / 1000
        return self.steps * costs.step + self.tokens * costs.token + encoded * costs.encoding

    async def generate(self, request: Generate) -> Generated:
        text, tokens = self._say(request)
        return Generated(text, "stop", await self._answer(request, tokens))

    async def choose(self, request: Choose) -> Chosen:
        return Chosen((0.9, 0.1), usage=await self._answer(request, 1))

    async def score(self, request: Score) -> Scored:
        raise EngineError("the simulation rates no text")

    async def close(self) -> None: ...

    async def _answer(self, request: Request, tokens: int) -> Usage:
        image = request.prompt.image
        shared = self._shape.system + (self._shape.image if image else 0)
        answered = asyncio.get_running_loop().create_future()
        job = _Job(shared + self._shape.text, shared, image.hash if image else None, tokens, answered)
        self.requests += 1
        self._waiting.append(job)
        if self._priority:
            job.priority = self._priority(request)
            self._waiting = deque(sorted(self._waiting, key=lambda each: each.priority))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        await answered
        return Usage(job.prompt, job.cached, tokens)

    async def _work(self) -> None:
        while True:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if not (self._waiting or self._running):
                return
            self._step()

    def _step(self) -> None:
        active: dict[int, tuple[_Job, int]] = {}
        budget = self._budget
        for job in list(self._running):
            tokens = min(budget, job.known - job.computed)
            if tokens and job in self._running and self._make_room(job, tokens, active):
                active[id(job)] = job, tokens
                budget -= tokens
        while self._waiting and budget and (tokens := self._begin(self._waiting[0], budget)):
            job = self._waiting.popleft()
            self._running.append(job)
            active[id(job)] = job, tokens
            budget -= tokens
            if job.image:
                self.encoded.add(job.image)
        for job, tokens in active.values():
            if job.computed < job.prompt:
                self.computed += tokens
            job.computed += tokens
            if job.computed == job.known:
                job.written += 1
            if job.written == job.wanted:
                self._running.remove(job)
                self._leave(job)
                job.answered.set_result(None)
        self.steps += 1
        self.batches += len(active)
        self.tokens += self._budget - budget

    def _begin(self, job: _Job, budget: int) -> int:
        """Tokens of a waiting request that are computed now; 0 where there are too few blocks."""
        while job.image and (place := self._places.get((job.image, len(job.blocks)))) is not None:
            job.blocks.append(place)
            self._free.pop(place, None)
            self._users[place] += 1
        job.computed = len(job.blocks) * self._block
        tokens = min(budget, job.known - job.computed)
        if not self._allocate(job, tokens):
            self._leave(job)
            return 0
        if job.cached is None:
            job.cached = job.computed
        return tokens

    def _make_room(self, job: _Job, tokens: int, active: dict[int, tuple[_Job, int]]) -> bool:
        """Blocks for a running request, if need be those of the requests that came last."""
        while not self._allocate(job, tokens):
            last = self._running.pop()
            self._leave(last)
            self._waiting.appendleft(last)
            self.preempted += 1
            active.pop(id(last), None)
            if last is job:
                return False
        return True

    def _allocate(self, job: _Job, tokens: int) -> bool:
        missing = -(-(job.computed + tokens) // self._block) - len(job.blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            if block in self._contents:
                del self._places[self._contents.pop(block)]
            self._users[block] = 1
            number = len(job.blocks)
            job.blocks.append(block)
            shared = job.image and (number + 1) * self._block <= job.shared
            if shared and (job.image, number) not in self._places:
                self._places[job.image, number] = block
                self._contents[block] = job.image, number
        return True

    def _leave(self, job: _Job) -> None:
        for block in reversed(job.blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None
        job.blocks = []


class Inline(Executor):
    """In place of the interpreter's threads, so that nothing depends on their timing."""

    def __init__(self, threads: int, name: str) -> None: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future
