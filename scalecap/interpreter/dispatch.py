"""Request dispatcher: seeds, caching, de-duplication of requests in flight, retries, token counts."""

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
MIN_CHOICES = 50
"""Choices of a step before its share of unanswered ones is judged."""
MIN_REPEATS = 50
"""Requests about images shown before, until the share of cached tokens is judged."""
MIN_CACHED_SHARE = 0.05
"""Share of cached tokens below which the prefix cache is useless."""
KV_SHARE_OF_IMAGES = 1 / 2
"""Share of a KV cache for the tokens of images in flight. The rest is for what follows them in concurrent
requests, and for partly filled blocks."""
_REMEMBERED_IMAGES = 4096
"""Images remembered as shown to an engine, least recently used ones dropped."""


class RowUsage(NamedTuple):
    """Requests and tokens of one row, counted as if no reply had come from the cache."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass
class StepUsage:
    """Requests, cache hits and tokens of one step, or of all steps."""

    requests: int = 0
    reused: int = 0
    """Requests answered from the cache or by an equal request in flight."""
    prompt_tokens: int = 0
    """Prompt tokens of requests that an engine answered, like all token counts below."""
    cached_tokens: int = 0
    """Prompt tokens that the engine's prefix cache had."""
    reported_tokens: int = 0
    """Prompt tokens of replies that report how many were cached."""
    repeats: int = 0
    """Requests with such a report about an image that the engine had been shown before."""
    repeat_tokens: int = 0
    """Prompt tokens of the repeats."""
    repeat_cached_tokens: int = 0
    """Prompt tokens of the repeats that the prefix cache had."""
    generated_tokens: int = 0
    reasoning_tokens: int = 0
    """Generated tokens of reasoning, before the answers."""
    choices: int = 0
    """Requests to choose among options; those whose reply is none of them have the flag unanswered."""
    retried: int = 0
    """Replies drawn a second time because the first was truncated, looping or could not be parsed."""
    reused_prompt_tokens: int = 0
    """Prompt tokens that the reused requests would have cost."""
    reused_generated_tokens: int = 0
    """Generated tokens that the reused requests would have cost."""
    flags: Counter[str] = field(default_factory=Counter)
    """How often each flag was set: truncated, looping, shortened, fallback …"""

    @property
    def checks(self) -> int:
        """Choices, or the requests of a step that reads its answers from replies."""
        return self.choices or self.requests

    @property
    def mostly_unanswered(self) -> bool:
        """Whether more than half of at least `MIN_CHOICES` checks were unanswered."""
        return self.checks >= MIN_CHOICES and 2 * self.flags["unanswered"] > self.checks

    @property
    def cached_share(self) -> float | None:
        """Share of the prompt tokens that the prefix cache had; None if no engine reports it."""
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
    def prefix_cache_is_useless(self) -> bool:
        """Whether `MIN_REPEATS` requests about images shown before reused less than `MIN_CACHED_SHARE`."""
        total = self.total
        few = total.repeat_cached_tokens < MIN_CACHED_SHARE * total.repeat_tokens
        return total.repeats >= MIN_REPEATS and few

    @property
    def unanswered_step(self) -> str | None:
        """The first step whose checks are mostly unanswered; None if there is none."""
        return next((name for name, usage in self.steps.items() if usage.mostly_unanswered), None)


@dataclass(eq=False)
class Dispatcher:
    """Sends requests to the engine of a role, through the reply cache. Roles may share an engine."""

    engines: Mapping[str, Engine]
    cache: Cache | None
    sampling: Sampling
    """Default of free-text requests."""
    seed: int
    """The run's."""
    usage: RunUsage
    """Is updated with every request."""
    min_mass: float
    """A choice is unanswered if its options have less probability together."""
    rows_without_images: int = field(default=0, init=False)
    """Rows in flight whose remaining requests show no image."""
    capacity_changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Set when `max_rows()` may have changed."""
    _in_flight: dict[str, asyncio.Task[Reply]] = field(default_factory=dict, init=False)
    _shown: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict, init=False)
    """Engine identity and image hash of answered requests, the latest last."""
    _longest: dict[str, int] = field(default_factory=dict, init=False)
    """Engine identity to the tokens of its longest prompt with an image, 0 while there was none."""

    def max_rows(self) -> int:
        """Rows to have in flight, so that the engines are busy and the images stay in the KV caches.

        A row has about two requests in flight on average. The prefix that an image's requests share is at
        most as long as the longest prompt with an image so far; the first four images find out how long
        that is. A row whose remaining requests show no image takes no room in the KV cache.
        """
        engines = self.engines.values()
        busy = max(4, max((engine.concurrency for engine in engines), default=0) // 2)
        sized = {engine.identity: engine.kv_tokens for engine in engines if engine.kv_tokens}
        longest = {name: tokens for name, tokens in self._longest.items() if tokens and name in sized}
        fitting = [int(KV_SHARE_OF_IMAGES * sized[name]) // tokens for name, tokens in longest.items()]
        if sized and not self._longest:
            fitting = [4]
        with_images = max(1, min([busy, *fitting]))
        return min(busy, with_images + self.rows_without_images)

    @contextmanager
    def without_images(self) -> Iterator[None]:
        """Wraps the rest of a row whose remaining requests show no image: another row may take its place."""
        self.rows_without_images += 1
        self.capacity_changed.set()
        try:
            yield
        finally:
            self.rows_without_images -= 1

    def client(
        self, step: str, flag: Flag, row: StepUsage | None = None, allowance: Allowance | None = None
    ) -> "StepClient":
        """A client for one step of one row; `flag` receives its flags, `row` its usage."""
        return StepClient(self, step, flag, row or StepUsage(), allowance or Allowance())

    async def send(self, role: str, request: Request, step: str, row: StepUsage) -> Reply:
        """The reply, from the cache, an equal request in flight or the engine; raises EngineError."""
        engine = self.engines[role]
        self.usage.steps[step].requests += 1
        name = key(engine.identity, request)
        # A waiter that is cancelled must not cancel the request for the others.
        if task := self._in_flight.get(name):
            reply = self._reuse(step, await asyncio.shield(task))
        else:
            task = self._in_flight[name] = asyncio.create_task(self._answer(engine, name, request, step))
            task.add_done_callback(lambda _: self._in_flight.pop(name))
            reply = await asyncio.shield(task)
        row.requests += 1
        row.prompt_tokens += reply.usage.prompt_tokens
        row.generated_tokens += reply.usage.generated_tokens
        return reply

    def _reuse(self, step: str, reply: Reply) -> Reply:
        """Count a reply that was not computed for this request."""
        count = self.usage.steps[step]
        count.reused += 1
        count.reused_prompt_tokens += reply.usage.prompt_tokens
        count.reused_generated_tokens += reply.usage.generated_tokens
        return reply

    async def _answer(self, engine: Engine, name: str, request: Request, step: str) -> Reply:
        """The cached reply, or else the engine's."""
        if self.cache and (found := await self.cache.get(name)):
            return self._reuse(step, found)
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
        count = self.usage.steps[step]  # read only now: a Ray actor replaces its usage in between
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
            if len(self._shown) > _REMEMBERED_IMAGES:
                self._shown.popitem(last=False)
        count.generated_tokens += reply.usage.generated_tokens
        count.reasoning_tokens += reply.usage.reasoning_tokens
        if self.cache:
            await self.cache.put(name, reply)
        return reply

    async def cancel_pending(self) -> None:
        """Cancel the requests in flight, at the end of a run that stops early."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class StepClient:
    """Implements `scalecap.stages.ModelClient` for one step of one row."""

    def __init__(
        self, dispatcher: Dispatcher, step: str, flag: Flag, row: StepUsage, allowance: Allowance
    ) -> None:
        self._dispatcher, self._step, self._flag, self._row = dispatcher, step, flag, row
        self._allowance = allowance

    def allowed(self, costs: Sequence[int]) -> int:
        """See `scalecap.stages.ModelClient`."""
        granted = self._allowance.grant(costs)
        if granted < len(costs):
            self.flag("over_limit")
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
        """Free text, see `scalecap.stages.ModelClient`.

        A sampled reply that is faulty is drawn once more, and `retry` is sent when the reply is a refusal or
        empty; the better reply of two is returned.
        """
        params = sampling or self._dispatcher.sampling

        async def draw(prompt: Prompt, attempt: int) -> Generated:
            # Greedy requests have no seed: their replies in the cache serve other seeds and steps.
            own_seed = 0
            if params.temperature > 0:
                own_seed = seed(self._dispatcher.seed, self._step, prompt, sample=sample, attempt=attempt)
            request = Generate(prompt, params, own_seed, schema)
            return cast(Generated, await self._send(model, request))

        def faults(reply: Generated) -> list[str]:
            """Flags of a faulty reply."""
            return [name for name in (fault(reply.text), find_fault(reply)) if name]

        def rank(reply: Generated) -> tuple[bool, bool, int]:
            failed = find_non_answer(reply) is not None, fault(reply.text) is not None
            return *failed, _FAULTS.index(find_fault(reply))

        async def best(prompt: Prompt) -> Generated:
            reply = await draw(prompt, 0)
            if whole and reply.finish == "context":
                usage = reply.usage
                raise PromptTooLong(usage.prompt_tokens, usage.prompt_tokens + usage.generated_tokens)
            if faults(reply) and params.temperature > 0:
                self._dispatcher.usage.steps[self._step].retried += 1
                reply = min(reply, await draw(prompt, 1), key=rank)
            return reply

        reply = await best(Prompt(text, image))
        if retry is not None and find_non_answer(reply):
            self.flag("reprompted")
            reply = min(reply, await best(Prompt(retry, image)), key=rank)
        for name in (*faults(reply), find_non_answer(reply)):
            if name:
                self.flag(name)
        if reply.reasoning:
            self.flag("reasoned")
        return reply

    async def choose(
        self,
        text: str,
        options: Sequence[str] = ("yes", "no"),
        *,
        image: Image | None = None,
        model: str = "vlm",
    ) -> Chosen:
        """Probabilities of the options; all 0, with the flag unanswered, if the reply is none of them."""
        request = Choose(Prompt(text, image), tuple(options))
        chosen = cast(Chosen, await self._send(model, request))
        self._dispatcher.usage.steps[self._step].choices += 1
        if chosen.mass < self._dispatcher.min_mass:  # never if it is unknown (nan)
            chosen = replace(chosen, probabilities=(0.0,) * len(options))
        if not chosen.answered:
            self.flag("unanswered")
        return chosen

    async def score(
        self, text: str, continuation: str, *, image: Image | None = None, model: str = "vlm"
    ) -> Scored:
        request = Score(Prompt(text, image), continuation)
        return cast(Scored, await self._send(model, request))

    def flag(self, name: str) -> None:
        self._dispatcher.usage.steps[self._step].flags[name] += 1
        self._flag(name)


_FAULTS = (None, "truncated", "looping")
"""From best to worst."""


def find_fault(reply: Generated) -> str | None:
    """The flag of a faulty reply, "looping" or "truncated"; None if it is fine."""
    if is_looping(reply.text):
        return "looping"
    return None if reply.finish == "stop" else "truncated"


def find_non_answer(reply: Generated) -> str | None:
    """The flag of a reply without an answer, "empty" or "refused"; None if it has one."""
    if not reply.text.strip():
        return "empty"
    return "refused" if refuses(reply.text) else None


def is_looping(text: str, *, times: int = 4, characters: int = 100) -> bool:
    """Whether the text ends in a chunk repeated at least `times` times, over at least `characters`.

    The last repetition may be cut anywhere. Only the last 4000 characters are examined.
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
    """A request's seed, 0 to 2³¹ − 1, from the run's seed, the step's name and content, never from timing.

    A row enters by its image and prompt, not by its position in the data, so that later runs and the jobs of
    a sweep find the reply of a step of the same name in the cache.

    Args:
        sample: index among several draws of one prompt.
        attempt: 1 if a faulty reply is drawn once more.
    """
    image = prompt.image.hash if prompt.image else ""
    content = f"{run}\0{step}\0{sample}\0{attempt}\0{image}\0{prompt.text}"
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
