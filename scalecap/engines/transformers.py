"""The engine that runs a model in this process with transformers, on a GPU or the CPU.

One thread owns the model. It takes what waits, answers choices and scores in one forward pass
each, and lets new replies join those being written at every token. Replies to prompts without a picture,
which often repeat them, are drafted (`scalecap.engines.drafts`): the same replies in fewer steps.
"""

import asyncio
import gc
import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineDead,
    EngineError,
    Finish,
    Generate,
    Generated,
    Reply,
    Request,
    Score,
    Scored,
    Token,
    Usage,
    finish,
)
from scalecap.engines.chat_template import Chat
from scalecap.engines.compat import patch_libraries
from scalecap.engines.drafts import PromptLookup
from scalecap.engines.identity import identity
from scalecap.engines.option_tokens import option_token_ids
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError, Weights, find, loading, out_of_memory

if TYPE_CHECKING:
    from scalecap.engines.model_runner import ModelRunner, Prefix, Rows

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Reply)


async def open_transformers(model: ModelSettings, engine: EngineSettings) -> "TransformersEngine":
    """Load a model into this process.

    Raises:
        ModelError: it can't be loaded; the message says the mend.
    """
    return await asyncio.to_thread(_load, model, engine)


def _load(model: ModelSettings, engine: EngineSettings) -> "TransformersEngine":
    weights = find(model)
    with loading(model):
        patch_libraries()
        transformers: Any = import_module("transformers")
        import torch

        from scalecap.engines.unpadded import model_runner_for

        if engine.quiet:
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
        config = _config(weights, model)
        sees = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind = transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM
        gpu = torch.cuda.is_available()
        dtype = _dtype(model.dtype, config, gpu)
        network = kind.from_pretrained(
            weights.folder, config=config, dtype=dtype, trust_remote_code=model.trust_remote_code
        )
        network = network.to("cuda" if gpu else "cpu").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            weights.folder, trust_remote_code=model.trust_remote_code
        )
        eyes = _eyes(weights, model) if sees else None
        context = config.get_text_config().max_position_embeddings
        context = min(context, model.max_context or context)
        chat = Chat(tokenizer, weights.chat_template(), parts=sees, variables=model.chat_template_kwargs)
        for line in chat.warnings(model.name):
            log.warning(line)
    ends = network.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    found = f"{weights.content} {str(dtype).removeprefix('torch.')}"
    return TransformersEngine(
        identity("transformers", found, model, engine),
        model_runner_for(network, eyes, context),
        chat,
        ends,
        engine,
    )


def _config(weights: Weights, model: ModelSettings) -> Any:
    """The model's configuration, made from the mended one."""
    transformers: Any = import_module("transformers")
    if weights.config.get("model_type") in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[weights.config["model_type"]].from_dict(weights.config)
    return transformers.AutoConfig.from_pretrained(weights.folder, trust_remote_code=model.trust_remote_code)


def _dtype(name: str, config: Any, gpu: bool) -> Any:
    """What to compute in: `auto` is the weights' own 16-bit type on a GPU and float32 on the CPU."""
    import torch

    if name != "auto":
        names = ("float64", "float32", "bfloat16", "float16")
        if name not in names:
            raise ModelError(f"model dtype {name} is unknown: one of auto, {', '.join(names)}")
        return getattr(torch, name)
    if not gpu:
        return torch.float32
    return torch.float16 if config.dtype == torch.float16 else torch.bfloat16


def _eyes(weights: Weights, model: ModelSettings) -> Any:
    """The image processor, Pillow's so that torchvision is not needed; None if it cuts no Qwen patches."""
    transformers: Any = import_module("transformers")
    bounds = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    eyes = transformers.AutoImageProcessor.from_pretrained(
        weights.folder,
        backend="pil",
        trust_remote_code=model.trust_remote_code,
        **{name: value for name, value in bounds.items() if value is not None},
    )
    return eyes if hasattr(eyes, "merge_size") else None


@dataclass(eq=False)
class _Job:
    """One request on its way through the thread; all but the first two is set when its turn comes."""

    request: Request
    future: "Future[Reply]" = field(default_factory=Future)
    prefix: "Prefix" = field(init=False)
    rest: list[int] = field(init=False)
    """Token ids read after the prefix."""
    cached: int = 0
    """Tokens of the prompt that were not computed again."""
    room: int = 0
    """Most tokens of the reply."""
    reply: list[int] = field(default_factory=list)
    """Token ids written so far; of a score, those of its text."""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """Characters and number of tokens, one after another, of a score's text."""
    seen: set[int] = field(default_factory=set)
    dice: random.Random = field(default_factory=random.Random)
    lookup: PromptLookup | None = None
    """Drafts the reply to a prompt without a picture; what is said of a picture repeats little."""

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.prefix.ids) + len(self.rest)

    def draft(self) -> list[int]:
        """Tokens that may follow the reply so far, and leave room for one more."""
        return self.lookup.draft(self.room - len(self.reply) - 1) if self.lookup else []

    @property
    def size(self) -> int:
        """About how long it is, in characters."""
        text = self.request.text if isinstance(self.request, Score) else ""
        return len(self.request.prompt.text) + len(text) + (4096 if self.request.prompt.image else 0)


class TransformersEngine:
    """Engine over a transformers model in this process; may be used by one event loop after another."""

    def __init__(
        self, identity: str, network: "ModelRunner", chat: Chat, ends: set[int], settings: EngineSettings
    ) -> None:
        self.identity = identity
        self.context_length: int | None = network.context
        self.concurrency = settings.concurrency or 2 * settings.batch_size
        self.kv_tokens: int | None = network.kept
        self._runner = network
        self._chat = chat
        self._ends = ends
        self._batch = max(1, settings.batch_size)
        self._told: dict[tuple[str, ...], list[list[int]]] = {}
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._waiting: list[_Job] = []
        self._writing: list[_Job] = []
        self._rows: Rows | None = None
        self._dead: EngineDead | None = None
        self._thread = threading.Thread(target=self._work, name="transformers", daemon=True)
        self._thread.start()

    async def generate(self, request: Generate) -> Generated:
        """Write a reply; the same seed gives the same reply whatever else is in flight."""
        return await self._ask(request, Generated)

    async def choose(self, request: Choose) -> Chosen:
        """Compare the options as the reply's first token."""
        return await self._ask(request, Chosen)

    async def score(self, request: Score) -> Scored:
        """Rate a text as the reply.

        Tokens that share a character (its bytes) are told as one, with the sums of their
        log-probabilities and logits.
        """
        return await self._ask(request, Scored) if request.text else Scored(())

    async def close(self) -> None:
        """Refuse what waits, stop, and free the memory."""
        self._queue.put(None)
        self._thread.join()  # not in a thread: at the interpreter's end none can be begun
        # The model went with the thread; now its memory goes back to the device.
        import torch

        gc.collect()
        torch.cuda.empty_cache()

    async def _ask(self, request: Request, kind: type[R]) -> R:
        job = _Job(request)
        self._queue.put(job)
        if self._dead:
            raise self._dead
        return cast(R, await asyncio.wrap_future(job.future))

    # The rest runs in the thread.

    def _work(self) -> None:
        try:
            while self._collect():
                self._try(self._choose, self._take(Choose, self._batch))
                self._try(self._score, self._take(Score, self._batch))
                self._try(self._admit, self._take(Generate, self._batch - len(self._writing)))
                self._try(self._write, self._writing)
            self._dead = EngineDead("the engine is closed")
        except BaseException as error:
            log.debug("the engine failed", exc_info=error)
            self._dead = EngineDead(f"the engine failed: {type(error).__name__}: {error}")
        # After `_dead` is set nobody waits for what is not in the queue yet.
        while not self._queue.empty():
            self._waiting += [job for job in [self._queue.get()] if job]
        for job in self._waiting + self._writing:
            self._settle(job, self._dead)
        self._rows, self._waiting, self._writing = None, [], []
        self._runner.forget()
        del self._runner

    def _collect(self) -> bool:
        """Take over what was asked, waiting only when there is nothing to do; False: close."""
        while not (self._queue.empty() and (self._waiting or self._writing)):
            job = self._queue.get()
            if job is None:
                return False
            self._waiting.append(job)
        return True

    def _take(self, kind: type[Request], most: int) -> list[_Job]:
        """Jobs of a kind, made ready: the oldest and those nearest to it in length."""
        jobs = [job for job in self._waiting if isinstance(job.request, kind)]
        if not jobs or most < 1:
            return []
        oldest = jobs[0].size
        taken = sorted(jobs, key=lambda job: abs(job.size - oldest))[:most]
        self._waiting = [job for job in self._waiting if job not in taken]
        ready: list[_Job] = []

        def prepare(some: list[_Job]) -> None:
            self._prepare(some[0])
            ready.extend(some)

        for job in taken:
            if not job.future.cancelled():
                self._try(prepare, [job])
        return ready

    def _try(self, work: Callable[[list[_Job]], None], jobs: list[_Job]) -> None:
        """Do the work; a failure stays these jobs' own, and out of memory means smaller batches."""
        if not jobs:
            return
        try:
            work(jobs)
        except Exception as error:
            if type(error).__name__ == "AcceleratorError":
                raise  # the device can't be used any more
            others = bool(self._writing)
            if jobs[0] in self._writing:
                jobs, self._writing, self._rows = self._writing, [], None
                others = False
            full = out_of_memory(error)
            if full:
                self._batch = max(1, len(jobs) // 2)
                self._runner.forget()
                log.warning("out of GPU memory: at most %d requests a batch from here on", self._batch)
            if full and (others or len(jobs) > 1):
                self._waiting = jobs + self._waiting
                return
            if full:
                failure = EngineError("this request alone fills the GPU's memory: lower model.vlm.max_pixels")
            else:
                log.debug("a batch failed", exc_info=error)
                failure = (
                    error
                    if isinstance(error, EngineError)
                    else EngineError(f"{type(error).__name__}: {error}")
                )
            for job in jobs:
                self._settle(job, failure)

    def _prepare(self, job: _Job) -> None:
        """Turn a request into tokens and compute its prefix if it is new."""
        request = job.request
        turn = self._chat.turn(request.prompt)
        job.rest, job.reply = turn.rest, []
        if isinstance(request, Score):
            job.reply, job.spans = self._chat.spans(request.text)
            job.rest = turn.rest + job.reply[:-1]
        elif isinstance(request, Choose) and request.options not in self._told:
            self._told[request.options] = option_token_ids(self._chat.encode, request.options)
        job.prefix, kept = self._runner.prefix(turn.prefix, request.prompt.image, len(job.rest))
        job.cached = len(job.prefix.ids) if kept else 0
        if isinstance(request, Generate):
            job.room = max(1, min(request.sampling.max_tokens, self._runner.context - job.prompt))
            job.seen = {*job.prefix.ids, *job.rest}
            job.dice = random.Random(request.seed)
            drafted = self._runner.drafts and request.prompt.image is None
            job.lookup = PromptLookup(job.rest) if drafted else None

    def _choose(self, jobs: list[_Job]) -> None:
        logits, _ = self._runner.prefill([(job.prefix, job.rest) for job in jobs])
        for job, row in zip(jobs, logits[:, -1], strict=True):
            assert isinstance(job.request, Choose)
            probabilities, mass = self._runner.odds(row, self._told[job.request.options])
            self._settle(job, Chosen(probabilities, mass, Usage(job.prompt, job.cached)))

    def _score(self, jobs: list[_Job]) -> None:
        most = max(len(job.reply) for job in jobs)
        logits, _ = self._runner.prefill([(job.prefix, job.rest) for job in jobs], most)
        for job, row in zip(jobs, logits, strict=True):
            rated = iter(self._runner.rate(row[-len(job.reply) :], job.reply))
            tokens = []
            for start, end, count in job.spans:
                logprobs, raw = zip(*islice(rated, count), strict=True)
                tokens.append(Token(start, end, sum(logprobs), sum(raw)))
            self._settle(job, Scored(tuple(tokens), Usage(job.prompt + 1, job.cached)))

    def _admit(self, jobs: list[_Job]) -> None:
        """Let new replies join those being written."""
        logits, rows = self._runner.prefill([(job.prefix, job.rest) for job in jobs])
        self._rows = self._rows.join(rows) if self._rows else rows
        self._writing = self._writing + jobs
        self._draw(jobs, logits[:, -1])
        self._drop_finished()

    def _write(self, jobs: list[_Job]) -> None:
        """One more token for every reply being written, and what was drafted of it as far as it stands."""
        assert self._rows
        positions = [job.prefix.next + len(job.rest) + len(job.reply) - 1 for job in jobs]
        given = [[job.reply[-1], *job.draft()] for job in jobs]
        logits = self._runner.step(self._rows, given, positions)
        read = [0] * len(jobs)
        going = list(range(len(jobs)))
        while going:
            at = read[going[0]]  # the same of all of them
            self._draw([jobs[place] for place in going], logits[going, at])
            for place in going:
                read[place] += 1
            going = [
                place
                for place in going
                if not jobs[place].future.done() and given[place][at + 1 : at + 2] == jobs[place].reply[-1:]
            ]
        self._rows.keep(read)
        self._drop_finished()

    def _draw(self, jobs: list[_Job], logits: Any) -> None:
        """Draw the next token of each; finished replies are handed over."""
        samplings = [job.request.sampling for job in jobs if isinstance(job.request, Generate)]
        drawn = self._runner.draw(logits, samplings, [job.seen for job in jobs], [job.dice for job in jobs])
        for job, sampling, token in zip(jobs, samplings, drawn, strict=True):
            job.reply.append(token)
            job.seen.add(token)
            if job.lookup:
                job.lookup.add(token)
            if token in self._ends:
                self._finish(job, job.reply[:-1], "stop")
            elif len(job.reply) == job.room:
                self._finish(job, job.reply, finish("length", job.room, sampling.max_tokens))

    def _drop_finished(self) -> None:
        kept = [place for place, job in enumerate(self._writing) if not job.future.done()]
        if len(kept) < len(self._writing):
            self._writing = [self._writing[place] for place in kept]
            self._rows = self._rows.only(kept) if self._rows and kept else None

    def _finish(self, job: _Job, ids: list[int], ended: Finish) -> None:
        said = self._chat.reply(ids)
        usage = Usage(job.prompt, job.cached, len(job.reply), said.reasoning_tokens)
        self._settle(job, Generated(said.text, ended, usage, said.reasoning))

    def _settle(self, job: _Job, outcome: Reply | EngineError) -> None:
        """Hand over a reply or an error, once, and unless nobody waits for it any more."""
        if job.future.done() or not job.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, EngineError):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
