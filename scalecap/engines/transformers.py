"""Engine that runs a model in this process with transformers, on a GPU or the CPU.

One thread owns the model. It answers waiting choices and scores in one forward pass each, and decodes replies
with continuous batching: new ones join the batch after any token. Replies to prompts without an image often
repeat the prompt, so they are drafted (`scalecap.engines.drafts`): the same replies in fewer steps.
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
    finish_reason,
)
from scalecap.engines.chat_template import ChatTokenizer
from scalecap.engines.compat import patch_libraries
from scalecap.engines.drafts import PromptLookup
from scalecap.engines.identity import identity
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError, Weights, find_weights, load_errors, out_of_memory

if TYPE_CHECKING:
    from scalecap.engines.model_runner import Batch, ModelRunner, Prefix

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Reply)


async def open_transformers(model: ModelSettings, engine: EngineSettings) -> "TransformersEngine":
    """Loads a model into this process. Raises ModelError, whose message says how to fix it."""
    return await asyncio.to_thread(_load, model, engine)


def _load(settings: ModelSettings, engine: EngineSettings) -> "TransformersEngine":
    weights = find_weights(settings)
    with load_errors(settings):
        patch_libraries()
        transformers: Any = import_module("transformers")
        import torch

        from scalecap.engines.unpadded import model_runner_for

        if engine.quiet:
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
        config = _config(weights, settings)
        has_vision = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        auto = transformers.AutoModelForImageTextToText if has_vision else transformers.AutoModelForCausalLM
        gpu = torch.cuda.is_available()
        dtype = _dtype(settings.dtype, config, gpu)
        model = auto.from_pretrained(
            weights.folder, config=config, dtype=dtype, trust_remote_code=settings.trust_remote_code
        )
        model = model.to("cuda" if gpu else "cpu").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            weights.folder, trust_remote_code=settings.trust_remote_code
        )
        image_processor = _image_processor(weights, settings) if has_vision else None
        context_length = config.get_text_config().max_position_embeddings
        context_length = min(context_length, settings.max_context or context_length)
        chat = ChatTokenizer(tokenizer, weights.chat_template(), has_vision, settings.chat_template_kwargs)
        for line in chat.warnings(settings.name):
            log.warning(line)
    eos_ids = model.generation_config.eos_token_id
    eos_ids = {tokenizer.eos_token_id, *(eos_ids if isinstance(eos_ids, list) else [eos_ids])} - {None}
    resolved = f"{weights.content} {str(dtype).removeprefix('torch.')}"
    return TransformersEngine(
        identity("transformers", resolved, settings, engine),
        model_runner_for(model, image_processor, context_length),
        chat,
        eos_ids,
        engine,
    )


def _config(weights: Weights, model: ModelSettings) -> Any:
    """The model's configuration, with fixed rope settings."""
    transformers: Any = import_module("transformers")
    if weights.config.get("model_type") in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[weights.config["model_type"]].from_dict(weights.config)
    return transformers.AutoConfig.from_pretrained(weights.folder, trust_remote_code=model.trust_remote_code)


def _dtype(name: str, config: Any, gpu: bool) -> Any:
    """The torch dtype to compute in: `auto` is the weights' 16-bit type on a GPU and float32 on the CPU."""
    import torch

    if name != "auto":
        names = ("float64", "float32", "bfloat16", "float16")
        if name not in names:
            raise ModelError(f"model dtype {name} is unknown: expected one of auto, {', '.join(names)}")
        return getattr(torch, name)
    if not gpu:
        return torch.float32
    return torch.float16 if config.dtype == torch.float16 else torch.bfloat16


def _image_processor(weights: Weights, model: ModelSettings) -> Any:
    """The image processor with Pillow, as torchvision may not work; None if it is not one of Qwen-VL's."""
    transformers: Any = import_module("transformers")
    bounds = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    processor = transformers.AutoImageProcessor.from_pretrained(
        weights.folder,
        backend="pil",
        trust_remote_code=model.trust_remote_code,
        **{name: value for name, value in bounds.items() if value is not None},
    )
    return processor if hasattr(processor, "merge_size") else None


@dataclass(eq=False)
class _Job:
    """One request in the thread; all fields but the first two are set by `_prepare`."""

    request: Request
    future: "Future[Reply]" = field(default_factory=Future)
    prefix: "Prefix" = field(init=False)
    suffix: list[int] = field(init=False)
    """Token ids of the prompt after the prefix; of a score, also those of the text but the last."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""
    max_tokens: int = 0
    reply: list[int] = field(default_factory=list)
    """Token ids generated so far; of a score, those of its text."""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """`(start, end, tokens)` for the characters of a score's text."""
    seen: set[int] = field(default_factory=set)
    """Token ids of prompt and reply, for the repetition penalty."""
    rng: random.Random = field(default_factory=random.Random)
    lookup: PromptLookup | None = None
    """Drafts the reply to a prompt without an image; replies about an image repeat little."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prefix.ids) + len(self.suffix)

    def draft(self) -> list[int]:
        """Tokens that may follow the reply so far, with room for one more after them."""
        return self.lookup.draft(self.max_tokens - len(self.reply) - 1) if self.lookup else []

    @property
    def size(self) -> int:
        """Approximate length in characters, to batch requests of similar length."""
        text = self.request.text if isinstance(self.request, Score) else ""
        return len(self.request.prompt.text) + len(text) + (4096 if self.request.prompt.image else 0)


class TransformersEngine:
    """Engine over a transformers model in this process; event loops may use it one after another."""

    def __init__(
        self,
        identity: str,
        runner: "ModelRunner",
        chat: ChatTokenizer,
        eos_ids: set[int],
        settings: EngineSettings,
    ) -> None:
        self.identity = identity
        self.context_length: int | None = runner.context_length
        self.concurrency = settings.concurrency or 2 * settings.batch_size
        self.kv_tokens: int | None = runner.max_cached_tokens
        self._runner = runner
        self._chat = chat
        self._eos_ids = eos_ids
        self._max_batch = max(1, settings.batch_size)
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._waiting: list[_Job] = []
        self._decoding: list[_Job] = []
        self._batch: Batch | None = None
        """KV cache of the replies in `_decoding`."""
        self._dead: EngineDead | None = None
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)
        self._thread.start()

    async def generate(self, request: Generate) -> Generated:
        """Generates a reply; the same seed gives the same reply whatever else is in flight."""
        return await self._submit(request, Generated)

    async def choose(self, request: Choose) -> Chosen:
        """Compares the options as the reply's first token."""
        return await self._submit(request, Chosen)

    async def score(self, request: Score) -> Scored:
        """Scores a text as the reply; tokens that share a character are returned as one, summed."""
        return await self._submit(request, Scored) if request.text else Scored(())

    async def close(self) -> None:
        """Fails waiting requests, stops the thread and frees the memory."""
        self._queue.put(None)
        self._thread.join()  # in this thread: at interpreter exit no other can be started
        # The thread has dropped the model; now its memory is returned to the device.
        import torch

        gc.collect()
        torch.cuda.empty_cache()

    async def _submit(self, request: Request, kind: type[R]) -> R:
        job = _Job(request)
        self._queue.put(job)
        if self._dead:
            raise self._dead
        return cast(R, await asyncio.wrap_future(job.future))

    # The rest runs in the thread.

    def _run(self) -> None:
        try:
            while self._receive():
                self._process(self._choose, self._take(Choose, self._max_batch))
                self._process(self._score, self._take(Score, self._max_batch))
                self._process(self._admit, self._take(Generate, self._max_batch - len(self._decoding)))
                self._process(self._decode, self._decoding)
            self._dead = EngineDead("the engine is closed")
        except BaseException as error:
            log.debug("the engine failed", exc_info=error)
            self._dead = EngineDead(f"the engine failed: {type(error).__name__}: {error}")
        # From here on `_submit` raises, so no job is added that nobody would answer.
        while not self._queue.empty():
            self._waiting += [job for job in [self._queue.get()] if job]
        for job in self._waiting + self._decoding:
            self._resolve(job, self._dead)
        self._batch, self._waiting, self._decoding = None, [], []
        self._runner.clear_cache()
        del self._runner

    def _receive(self) -> bool:
        """Takes new jobs from the queue, waiting only if there is nothing else to do; False: close."""
        while not (self._queue.empty() and (self._waiting or self._decoding)):
            job = self._queue.get()
            if job is None:
                return False
            self._waiting.append(job)
        return True

    def _take(self, kind: type[Request], count: int) -> list[_Job]:
        """Up to `count` prepared jobs of a kind: the oldest one and those closest to it in length."""
        jobs = [job for job in self._waiting if isinstance(job.request, kind)]
        if not jobs or count < 1:
            return []
        oldest = jobs[0].size
        taken = sorted(jobs, key=lambda job: abs(job.size - oldest))[:count]
        self._waiting = [job for job in self._waiting if job not in taken]
        return [job for job in taken if not job.future.cancelled() and self._process(self._prepare, [job])]

    def _process(self, work: Callable[[list[_Job]], None], jobs: list[_Job]) -> bool:
        """Whether `work` succeeds; an error fails these jobs only, out of memory reduces the batch size."""
        try:
            if jobs:
                work(jobs)
            return True
        except Exception as error:
            if type(error).__name__ == "AcceleratorError":
                raise  # the device is unusable
            shared = bool(self._decoding)
            if jobs[0] in self._decoding:
                jobs, self._decoding, self._batch = self._decoding, [], None
                shared = False
            failure = None
            if out_of_memory(error):
                self._max_batch = max(1, (len(jobs) + len(self._decoding)) // 2)
                self._runner.clear_cache()
                log.warning("out of GPU memory: batch size reduced to %d", self._max_batch)
                if len(jobs) == 1 and not shared:
                    message = "this request alone does not fit into GPU memory: lower model.vlm.max_pixels"
                    failure = EngineError(message)
            else:
                log.debug("a batch failed", exc_info=error)
                unexpected = EngineError(f"{type(error).__name__}: {error}")
                failure = error if isinstance(error, EngineError) else unexpected
            if failure is None:
                self._waiting = jobs + self._waiting
            else:
                for job in jobs:
                    self._resolve(job, failure)
            return False

    def _prepare(self, jobs: list[_Job]) -> None:
        """Tokenizes a request and computes its prefix unless it is cached."""
        (job,) = jobs
        request = job.request
        tokens = self._chat.encode_prompt(request.prompt)
        job.suffix, job.reply = tokens.suffix, []
        if isinstance(request, Score):
            job.reply, job.spans = self._chat.encode_with_spans(request.text)
            job.suffix = tokens.suffix + job.reply[:-1]
        elif isinstance(request, Choose):
            self._chat.option_ids(request.options)  # an error fails this request only
        job.prefix, cached = self._runner.get_prefix(tokens.prefix, request.prompt.image, len(job.suffix))
        job.cached_tokens = len(job.prefix.ids) if cached else 0
        if isinstance(request, Generate):
            free = self._runner.context_length - job.prompt_tokens
            job.max_tokens = max(1, min(request.sampling.max_tokens, free))
            job.seen = {*job.prefix.ids, *job.suffix}
            job.rng = random.Random(request.seed)
            drafted = self._runner.supports_drafts and request.prompt.image is None
            job.lookup = PromptLookup(job.suffix) if drafted else None

    def _choose(self, jobs: list[_Job]) -> None:
        logits, _ = self._runner.prefill([(job.prefix, job.suffix) for job in jobs])
        for job, row in zip(jobs, logits[:, -1], strict=True):
            assert isinstance(job.request, Choose)
            option_ids = self._chat.option_ids(job.request.options)
            probabilities, mass = self._runner.option_probs(row, option_ids)
            self._resolve(job, Chosen(probabilities, mass, Usage(job.prompt_tokens, job.cached_tokens)))

    def _score(self, jobs: list[_Job]) -> None:
        longest = max(len(job.reply) for job in jobs)
        logits, _ = self._runner.prefill([(job.prefix, job.suffix) for job in jobs], longest)
        for job, row in zip(jobs, logits, strict=True):
            scores = iter(self._runner.token_logprobs(row[-len(job.reply) :], job.reply))
            tokens = []
            for start, end, count in job.spans:
                logprobs, raw = zip(*islice(scores, count), strict=True)
                tokens.append(Token(start, end, sum(logprobs), sum(raw)))
            self._resolve(job, Scored(tuple(tokens), Usage(job.prompt_tokens + 1, job.cached_tokens)))

    def _admit(self, jobs: list[_Job]) -> None:
        """Prefills new replies and adds them to the decoding batch."""
        logits, batch = self._runner.prefill([(job.prefix, job.suffix) for job in jobs])
        if self._batch:
            self._batch.extend(batch)
        else:
            self._batch = batch
        self._decoding = self._decoding + jobs
        self._sample(jobs, logits[:, -1])
        self._drop_finished()

    def _decode(self, jobs: list[_Job]) -> None:
        """One decoding step: a token for every reply, and its draft's tokens as far as they are right."""
        assert self._batch
        positions = [job.prefix.next_position + len(job.suffix) + len(job.reply) - 1 for job in jobs]
        inputs = [[job.reply[-1], *job.draft()] for job in jobs]
        logits = self._runner.step(self._batch, inputs, positions)
        accepted = [0] * len(jobs)
        rows = list(range(len(jobs)))
        while rows:
            at = accepted[rows[0]]  # the same for all of them
            self._sample([jobs[row] for row in rows], logits[rows, at])
            for row in rows:
                accepted[row] += 1
            rows = [
                row
                for row in rows
                if not jobs[row].future.done() and inputs[row][at + 1 : at + 2] == jobs[row].reply[-1:]
            ]
        self._batch.accept(accepted)
        self._drop_finished()

    def _sample(self, jobs: list[_Job], logits: Any) -> None:
        """Samples the next token of each reply and resolves those that are finished."""
        samplings = [job.request.sampling for job in jobs if isinstance(job.request, Generate)]
        tokens = self._runner.sample(logits, samplings, [job.seen for job in jobs], [job.rng for job in jobs])
        for job, sampling, token in zip(jobs, samplings, tokens, strict=True):
            job.reply.append(token)
            job.seen.add(token)
            if job.lookup:
                job.lookup.add(token)
            if token in self._eos_ids:
                self._finish(job, job.reply[:-1], "stop")
            elif len(job.reply) == job.max_tokens:
                self._finish(job, job.reply, finish_reason("length", job.max_tokens, sampling.max_tokens))

    def _drop_finished(self) -> None:
        rows = [row for row, job in enumerate(self._decoding) if not job.future.done()]
        if self._batch and len(rows) < len(self._decoding):
            rows = self._batch.keep(rows) if rows else []
            self._decoding = [self._decoding[row] for row in rows]
            self._batch = self._batch if rows else None

    def _finish(self, job: _Job, ids: list[int], finish: Finish) -> None:
        reply = self._chat.decode_reply(ids)
        usage = Usage(job.prompt_tokens, job.cached_tokens, len(job.reply), reply.reasoning_tokens)
        self._resolve(job, Generated(reply.text, finish, usage, reply.reasoning))

    def _resolve(self, job: _Job, result: Reply | EngineError) -> None:
        """Sets a job's result or error, unless it has one or was cancelled."""
        if job.future.done() or not job.future.set_running_or_notify_cancel():
            return
        if isinstance(result, EngineError):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
