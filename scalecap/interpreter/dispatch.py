"""Request dispatcher: seeds, caching, de-duplication of requests in flight, retries and token counts."""

import asyncio
import hashlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, cast

from scalecap.engines.base import (
    Choose,
    Chosen,
    Engine,
    Generate,
    Generated,
    Image,
    Prompt,
    PromptTooLong,
    Reply,
    Request,
    Sampling,
    Score,
    Scored,
)
from scalecap.interpreter.allowance import Allowance
from scalecap.interpreter.cache import Cache, key
from scalecap.text.refusals import refuses

Flag = Callable[[str], None]
CHOICES = 50
"""Choices of one step after which the share of unanswered ones says something."""

REPEATS = 50
"""Requests about pictures shown before, after which the share of cached tokens says something."""
LITTLE = 0.05
"""Cached share below which the prefix cache is of no use."""
SHARED = 1 / 2
"""Of a KV cache: for the tokens of pictures in flight. The rest is for what follows them in requests side by
side, and the blocks that these begin."""
_SHOWN = 4096
"""Pictures remembered as shown to an engine."""


class RowUsage(NamedTuple):
    """What one row took, as if no reply had come from the cache."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


NOTHING_USED = RowUsage()


@dataclass
class StepUsage:
    """Requests, cache hits and tokens of one step, or of all."""

    requests: int = 0
    reused: int = 0
    """Of the requests: answered from the cache, or by an equal one in flight."""
    prompt_tokens: int = 0
    """Of the requests that an engine answered, as are all tokens."""
    cached_tokens: int = 0
    """Of the prompt tokens: not computed again, since the engine's prefix cache had them."""
    reported_tokens: int = 0
    """Of the prompt tokens: those of replies that tell how many were cached."""
    repeats: int = 0
    """Of the requests that an engine answered, and told that of: about a picture that it was shown before."""
    repeat_tokens: int = 0
    """Prompt tokens of these."""
    repeat_cached_tokens: int = 0
    """Of these tokens: not computed again."""
    generated_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the generated tokens: before the answers."""
    choices: int = 0
    """Of the requests: choices among options; those that were none of them are marked unanswered."""
    retried: int = 0
    """Asked a second time because the first reply was truncated, looping or could not be parsed."""
    reused_prompt_tokens: int = 0
    """Of the requests that were reused: what they would have cost."""
    reused_generated_tokens: int = 0
    marks: Counter[str] = field(default_factory=Counter)
    """How often each flag was set: truncated, looping, shortened, fallback …"""

    @property
    def unreadable(self) -> bool:
        """Whether most choices were unanswered, of at least 50."""
        return self.choices >= CHOICES and 2 * self.marks["unanswered"] > self.choices

    @property
    def cached_share(self) -> float | None:
        """Share of the prompt tokens that the prefix cache had; None where no engine told."""
        return self.cached_tokens / self.reported_tokens if self.reported_tokens else None

    def __add__(self, other: "StepUsage") -> "StepUsage":
        return StepUsage(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


@dataclass
class RunUsage:
    """Usage of each step so far."""

    steps: defaultdict[str, StepUsage] = field(default_factory=lambda: defaultdict(StepUsage))

    @property
    def total(self) -> StepUsage:
        return sum(self.steps.values(), StepUsage())

    @property
    def reuses_nothing(self) -> bool:
        """Whether pictures' tokens are hardly reused: below 5 %, in 50 requests about one shown before."""
        total = self.total
        return total.repeats >= REPEATS and total.repeat_cached_tokens < LITTLE * total.repeat_tokens

    @property
    def unreadable(self) -> str | None:
        """The first step of whose choices most were unanswered, after 50 of them; None when there is none."""
        return next((name for name, count in self.steps.items() if count.unreadable), None)


class Dispatcher:
    """Sends requests to the engine of a role (one engine may have several), through the reply cache.

    Args:
        min_mass: a choice whose options have less probability together is unanswered.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        cache: Cache | None,
        sampling: Sampling,
        seed: int,
        counts: RunUsage,
        min_mass: float,
    ) -> None:
        self.engines = engines
        self.cache = cache
        self.sampling = sampling
        self.seed = seed
        self.counts = counts
        self.min_mass = min_mass
        self._in_flight: dict[str, asyncio.Task[Reply]] = {}
        self._shown: OrderedDict[tuple[str, str], None] = OrderedDict()
        """Engine and picture of requests that were answered, the latest last."""
        self._longest: dict[str, int] = {}
        """By engine: tokens of the longest prompt with a picture, 0 as long as there was none."""
        self.without_picture = 0
        """Rows in flight whose remaining steps show no picture."""
        self.capacity_changed = asyncio.Event()
        """Set when `rows()` may have changed."""

    def rows(self) -> int:
        """Rows to have in flight: they keep the engines busy, and their pictures stay in the KV caches.

        Over its whole time a row has about two requests in flight. What a picture's requests share is no
        longer than the longest prompt with a picture so far; four pictures find out how long prompts are.
        A row whose remaining steps show no picture takes no room from the others.
        """
        engines = self.engines.values()
        busy = max(4, max((engine.concurrency for engine in engines), default=0) // 2)
        sized = {engine.identity: engine.kv_tokens for engine in engines if engine.kv_tokens}
        longest = {name: tokens for name, tokens in self._longest.items() if tokens and name in sized}
        fit = [int(SHARED * sized[name]) // tokens for name, tokens in longest.items()]
        if sized and not self._longest:
            fit = [4]
        pictures = max(1, min([busy, *fit]))
        return min(busy, pictures + self.without_picture)

    @contextmanager
    def showing_no_picture(self) -> Iterator[None]:
        """The rest of a row whose remaining steps show no picture: another row's may have its place."""
        self.without_picture += 1
        self.capacity_changed.set()
        try:
            yield
        finally:
            self.without_picture -= 1

    def client(
        self, step: str, flag: Flag, row: StepUsage | None = None, allowance: Allowance | None = None
    ) -> "StepClient":
        """A client for one step of one row; `flag` receives its flags, `row` its usage."""
        return StepClient(self, step, flag, row or StepUsage(), allowance or Allowance())

    async def send(self, role: str, request: Request, step: str, row: StepUsage) -> Reply:
        """The reply, from the cache, an equal request in flight or the engine; raises EngineError."""
        reply = await self._send(self.engines[role], request, step)
        row.requests += 1
        row.prompt_tokens += reply.usage.prompt_tokens
        row.generated_tokens += reply.usage.generated_tokens
        return reply

    async def _send(self, engine: Engine, request: Request, step: str) -> Reply:
        self.counts.steps[step].requests += 1
        name = key(engine.identity, request)
        task = self._in_flight.get(name)
        if task is not None:
            # One that gives up must not take the reply from the others who wait for it.
            return self._reuse(step, await asyncio.shield(task))
        task = asyncio.create_task(self._answer(engine, name, request, step))
        self._in_flight[name] = task
        task.add_done_callback(lambda _: self._in_flight.pop(name))
        return await asyncio.shield(task)

    def _reuse(self, step: str, reply: Reply) -> Reply:
        """Count a reply that was not computed for the request that it answers."""
        count = self.counts.steps[step]
        count.reused += 1
        count.reused_prompt_tokens += reply.usage.prompt_tokens
        count.reused_generated_tokens += reply.usage.generated_tokens
        return reply

    async def _answer(self, engine: Engine, name: str, request: Request, step: str) -> Reply:
        """The reply that the cache has, or the engine's."""
        if self.cache and (kept := await self.cache.get(name)):
            return self._reuse(step, kept)
        return await self._compute(engine, name, request, step)

    async def _compute(self, engine: Engine, name: str, request: Request, step: str) -> Reply:
        reply: Reply
        image = request.prompt.image
        shown = image is not None and (engine.identity, image.hash) in self._shown
        match request:
            case Generate():
                reply = await engine.generate(request)
            case Choose():
                reply = await engine.choose(request)
            case Score():
                reply = await engine.score(request)
        tokens = reply.usage.prompt_tokens if image else 0
        if tokens > self._longest.get(engine.identity, -1):
            self._longest[engine.identity] = tokens
            self.capacity_changed.set()
        count = self.counts.steps[step]  # not before: an actor hands its counts over in between
        count.prompt_tokens += reply.usage.prompt_tokens
        if (cached := reply.usage.cached_tokens) is not None:
            count.cached_tokens += cached
            count.reported_tokens += reply.usage.prompt_tokens
            if shown:
                count.repeats += 1
                count.repeat_tokens += tokens
                count.repeat_cached_tokens += cached
        if image:
            self._shown[engine.identity, image.hash] = None
            self._shown.move_to_end((engine.identity, image.hash))
            if len(self._shown) > _SHOWN:
                self._shown.popitem(last=False)
        count.generated_tokens += reply.usage.generated_tokens
        count.reasoning_tokens += reply.usage.reasoning_tokens
        if self.cache:
            await self.cache.put(name, reply)
        return reply

    async def cancel_pending(self) -> None:
        """Cancel what is still in flight, at the end of a run that stops early."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class StepClient:
    """`scalecap.stages.ModelClient` for one step of one row."""

    def __init__(
        self, dispatcher: Dispatcher, step: str, flag: Flag, row: StepUsage, allowance: Allowance
    ) -> None:
        self._dispatcher, self._step, self._flag, self._row = dispatcher, step, flag, row
        self._allowance = allowance

    def allowed(self, costs: Sequence[int]) -> int:
        """How many of these items the step may ask about; see `scalecap.stages.ModelClient`."""
        granted = self._allowance.grant(costs)
        if granted < len(costs):
            self.mark("unasked")
        return granted

    async def _send(self, role: str, request: Request) -> Reply:
        self._allowance.check()
        return await self._dispatcher.send(role, request, self._step, self._row)

    async def generate(
        self,
        text: str,
        *,
        image: Image | None = None,
        model: str = "vlm",
        sampling: Sampling | None = None,
        whole: bool = False,
        sample: int = 0,
        schema: str | None = None,
        fault: Callable[[str], str | None] = lambda text: None,
        retry: str | None = None,
    ) -> Generated:
        """Free text. A faulty reply to a random draw is drawn once more; `retry` is asked for one that is a
        refusal or empty; the better stays."""
        drawn = sampling or self._dispatcher.sampling

        async def draw(prompt: Prompt, attempt: int) -> Generated:
            # A greedy reply has no seed, so that another run's seed, or another step, finds it in the cache.
            own = drawn.temperature > 0
            chance = (
                seed(self._dispatcher.seed, self._step, prompt, sample=sample, attempt=attempt) if own else 0
            )
            request = Generate(prompt, drawn, chance, schema)
            return cast(Generated, await self._send(model, request))

        def faults(reply: Generated) -> list[str]:
            """What is wrong with the reply, from its text's own fault to how it ended."""
            return [name for name in (fault(reply.text), find_fault(reply)) if name]

        def rank(reply: Generated) -> tuple[bool, bool, int]:
            wrong = find_silence(reply) is not None, fault(reply.text) is not None
            return *wrong, _FAULTS.index(find_fault(reply))

        async def best(prompt: Prompt) -> Generated:
            reply = await draw(prompt, 0)
            if whole and reply.finish == "context":
                usage = reply.usage
                raise PromptTooLong(usage.prompt_tokens, usage.prompt_tokens + usage.generated_tokens)
            if faults(reply) and drawn.temperature > 0:
                self._dispatcher.counts.steps[self._step].retried += 1
                reply = min(reply, await draw(prompt, 1), key=rank)
            return reply

        reply = await best(Prompt(text, image))
        if retry is not None and find_silence(reply):
            self.mark("reprompted")
            reply = min(reply, await best(Prompt(retry, image)), key=rank)
        for name in (*faults(reply), find_silence(reply)):
            if name:
                self.mark(name)
        if reply.reasoning:
            self.mark("reasoned")
        return reply

    async def choose(
        self,
        text: str,
        options: Sequence[str] = ("yes", "no"),
        *,
        image: Image | None = None,
        model: str = "vlm",
    ) -> Chosen:
        """Probabilities of the options, all 0 when the reply is none of them, which is marked."""
        request = Choose(Prompt(text, image), tuple(options))
        chosen = cast(Chosen, await self._send(model, request))
        self._dispatcher.counts.steps[self._step].choices += 1
        if chosen.mass < self._dispatcher.min_mass:  # never where it is not known (nan)
            chosen = replace(chosen, probabilities=(0.0,) * len(options))
        if not chosen.answered:
            self.mark("unanswered")
        return chosen

    async def score(
        self, text: str, continuation: str, *, image: Image | None = None, model: str = "vlm"
    ) -> Scored:
        request = Score(Prompt(text, image), continuation)
        return cast(Scored, await self._send(model, request))

    def mark(self, flag: str) -> None:
        self._dispatcher.counts.steps[self._step].marks[flag] += 1
        self._flag(flag)


_FAULTS = (None, "truncated", "looping")
"""From good to bad."""


def find_fault(reply: Generated) -> str | None:
    """What is wrong with the reply: "looping", "truncated" or nothing."""
    if loops(reply.text):
        return "looping"
    return None if reply.finish == "stop" else "truncated"


def find_silence(reply: Generated) -> str | None:
    """Why the reply says nothing: "empty", "refused" or it does."""
    if not reply.text.strip():
        return "empty"
    return "refused" if refuses(reply.text) else None


def loops(text: str, *, times: int = 4, characters: int = 100) -> bool:
    """Whether the text ends in one chunk said at least `times` times, over at least `characters`.

    The last repetition may be cut anywhere. Only the last 4000 characters are looked at.
    """
    tail = text.rstrip()[-4000:]
    for period in range(1, len(tail) // times + 1):
        same = 0
        while same + period < len(tail) and tail[-1 - same] == tail[-1 - same - period]:
            same += 1
        if same + period >= max(times * period, characters):
            return True
    return False


def seed(run: int, step: str, prompt: Prompt, *, sample: int = 0, attempt: int = 0) -> int:
    """A request's seed, 0 to 2³¹ − 1, from the run's seed, the step's name and content: never from timing.

    The row stands in it by its picture and by what the prompt says of it, not by its place in the data. So
    a sweep's jobs, and later runs, find the reply of a step of the same name in the cache.

    Args:
        sample: which of several draws of one prompt.
        attempt: 1 when a faulty reply is drawn once more.
    """
    image = prompt.image.hash if prompt.image else ""
    content = f"{run}\0{step}\0{sample}\0{attempt}\0{image}\0{prompt.text}"
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
