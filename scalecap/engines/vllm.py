"""The engine that runs vLLM in this process's children, on GPUs or with vLLM's CPU build.

What it does with a request:

* Prompts go to vLLM as token ids made by `Chat`, so a control token inside a text stays text.
* A picture is named by its hash. Its pixels are sent once; while vLLM keeps the processed picture,
  requests carry the name alone, and when it was dropped the pixels are sent again.
* `choose` is one token whose log-probabilities vLLM tells for the options' spellings alone, from
  the unconstrained distribution. `score` is one prefill with `prompt_logprobs`, without the prefix
  cache. By default vLLM tells log-probabilities, so a scored `Token` has no `logit`; with
  `engine.args.logprobs_mode=raw_logits` it has that alone, and the `mass` of a choice is not known.

On the CPU it computes eagerly in float32, as the transformers engine does, with at most 8,192 tokens
of context unless `model.vlm.max_context` says more; models with Gated DeltaNet layers in bfloat16, the
one type that its kernels know. Replies may differ from those of the transformers engine where a picture
is scaled: the libraries' bicubic filters round differently.
"""

import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import logging
import math
import os
import re
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import IO, Any

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineDead,
    EngineError,
    Generate,
    Generated,
    Prompt,
    PromptTooLong,
    Score,
    Scored,
    Token,
    Usage,
    finish,
)
from scalecap.engines.chat_template import Chat
from scalecap.engines.compat import patch_libraries, patched_children
from scalecap.engines.identity import identity
from scalecap.engines.option_tokens import option_token_ids
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError, Weights, find, loading, size_of
from scalecap.text.suggestions import did_you_mean

log = logging.getLogger(__name__)

_CPU_CONTEXT = 8192
_CPU_CACHE = 4 << 30
"""Bytes of KV cache on the CPU, unless `VLLM_CPU_KVCACHE_SPACE` or `engine.args` say otherwise."""
_ENCODED = 1 / 32
"""Share of the device's memory that is for encoded pictures, out of `gpu_memory_utilization`."""
_KNOWN_IMAGES = 4096
_DROPPED = ("data is not provided", "Expected a cached item")
"""What vLLM says of a picture that it was only told the name of and has dropped, before or meanwhile."""


async def open_vllm(
    model: ModelSettings, engine: EngineSettings, beside: Sequence[ModelSettings] = ()
) -> "VllmEngine":
    """Start vLLM with a model; blocks the event loop while it loads.

    Args:
        beside: other models that share `gpu_memory_utilization` with it.

    Raises:
        ModelError: it can't be loaded; the message says the mend.
    """
    # These hold from vLLM's import on.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # The CPU build leaves a core to other work by itself, half of a small machine.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    # A fork would copy the locks that this process's threads hold.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if engine.quiet:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError("vLLM is not installed", name="vllm")
    weights = find(model)
    output = tempfile.TemporaryFile("a+") if engine.quiet else None  # noqa: SIM115 (lives as long as the engine)
    with loading(model), _printing_to(output):
        patch_libraries()
        import transformers
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        cpu = current_platform.is_cpu()
        _check(engine.args, [field.name for field in dataclasses.fields(AsyncEngineArgs)])
        arguments = _arguments(model, weights, cpu) | engine.args
        if not cpu:
            whole = arguments.get("gpu_memory_utilization", AsyncEngineArgs.gpu_memory_utilization)
            if beside:
                split = arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
                held = [size_of(each) / split for each in (model, *beside)]
                whole = share_of_memory(whole, current_platform.get_device_total_memory(), held)
            encoded = _ENCODED if "vision_config" in weights.config else 0.0
            arguments["gpu_memory_utilization"] = whole - encoded
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            weights.folder, trust_remote_code=model.trust_remote_code
        )
        try:
            with patched_children():
                # The context's name chooses vLLM's defaults for throughput.
                context = UsageContext.LLM_CLASS
                config = AsyncEngineArgs(**arguments).create_engine_config(context)
                moved = ""
                if config.model_config.is_multimodal_model:
                    moved = _enlarge_encoder_cache(config, current_platform.get_device_total_memory())
                dtype = str(config.model_config.dtype).removeprefix("torch.")
                replicas = config.parallel_config.data_parallel_size
                chat = Chat(
                    tokenizer,
                    weights.chat_template(),
                    parts=config.model_config.is_multimodal_model,
                    variables=model.chat_template_kwargs,
                )
                warnings = [*chat.warnings(model.name), *([moved] if moved else [])]
                opened = VllmEngine(
                    AsyncLLM.from_vllm_config(config, usage_context=context, disable_log_stats=True),
                    chat,
                    identity=identity("vllm", f"{weights.content} {dtype}", model, engine),
                    concurrency=engine.concurrency
                    or min(config.scheduler_config.max_num_seqs, 32 if cpu else 256) * replicas,
                    output=output,
                    logits=config.model_config.logprobs_mode == "raw_logits",
                    replicas=replicas,
                )
        except Exception as error:
            raise _failure(model, error, output) from error
    # Not before: what is printed inside goes to the file.
    for line in warnings:
        log.warning(line)
    return opened


def _check(args: dict[str, Any], known: list[str]) -> None:
    """Refuse what AsyncEngineArgs does not have, and what the engine's own requests rely on."""
    for key in args:
        if key not in known:
            raise ModelError(f"engine.args.{key} is no argument of vLLM{did_you_mean(key, known)}")
    for key, instead in (("model", "model.vlm.name"), ("revision", "model.vlm.revision")):
        if key in args:
            raise ModelError(f"engine.args.{key}: the weights are chosen by {instead}=…, for each role apart")
    if args.get("speculative_config"):
        raise ModelError(
            "engine.args.speculative_config: vLLM gives no log-probabilities of what it speculates, and"
            " choices are read from them; a server with speculation may answer text alone:"
            " model.llm.engine={name: openai, base_url: …}"
        )
    if args.get("logprobs_mode", "raw_logprobs") not in ("raw_logprobs", "raw_logits"):
        raise ModelError(
            "engine.args.logprobs_mode must be raw_logprobs or raw_logits: choices are read from it"
        )


def _arguments(model: ModelSettings, weights: Weights, cpu: bool) -> dict[str, Any]:
    """Engine arguments unless `engine.args` says otherwise."""
    config = weights.config
    arguments: dict[str, Any] = {
        "model": str(weights.folder),
        "dtype": _dtype(model.dtype, cpu, config),
        "trust_remote_code": model.trust_remote_code,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # Longest that the memory left by the weights can hold.
        "max_model_len": model.max_context or -1,
    }
    if weights.mended:
        arguments["hf_overrides"] = weights.mended
    if "vision_config" in config:
        # Room is not kept for what is never sent.
        arguments["limit_mm_per_prompt"] = {"image": 1, "video": 0}
    bounds = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    if bounds := {key: value for key, value in bounds.items() if value}:
        arguments["mm_processor_kwargs"] = bounds
    if cpu:
        own = {**config, **config.get("text_config", {})}.get("max_position_embeddings", _CPU_CONTEXT)
        context = min(own, model.max_context or _CPU_CONTEXT)
        arguments |= {
            "enforce_eager": True,
            "max_model_len": context,
            "kv_cache_memory_bytes": _CPU_CACHE,
        }
    return arguments


def share_of_memory(whole: float, memory: int, weights: Sequence[float]) -> float:
    """The first model's part of what all may use: its weights, and as much more as each of the others.

    vLLM by itself takes all that is allowed, and does not start where less is left.

    Args:
        whole: share of the device's memory that all may use.
        memory: bytes of the device.
        weights: bytes of each model's weights on the device.
    """
    more = (whole * memory - sum(weights)) / len(weights)
    return (weights[0] + more) / memory


def _enlarge_encoder_cache(config: Any, memory: int) -> str:
    """Let encoded pictures stay as long as their rows are in flight.

    By itself vLLM keeps as many of their tokens as a batch has, those of a handful of pictures. Others are
    encoded again for every text that follows, though all their tokens but the last few are in the KV cache: a
    block that ends in text belongs to that text.

    The field is not public, so a version may have it elsewhere than 0.32 has.

    Args:
        memory: the device's, in bytes.

    Returns:
        What could not be done, and what it costs; empty when all is well.
    """
    try:
        model, scheduler = config.model_config, config.scheduler_config
        vision = getattr(model.hf_config, "vision_config", None)
        layers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
        token = model.get_hidden_size() * layers * model.dtype.itemsize
        scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, int(memory * _ENCODED / token))
    except AttributeError as error:
        return (
            f"this version of vLLM has its budget of encoded pictures elsewhere ({error}): it keeps few, and"
            " encodes pictures again when many rows are in flight. Captions are the same; fewer"
            " rows_in_flight, or a larger engine.args.max_num_batched_tokens, save time"
        )
    return ""


def _dtype(name: str, cpu: bool, config: dict[str, Any]) -> str:
    """vLLM knows no float64, which the embedded model is computed in elsewhere.

    Raises:
        ModelError: vLLM's CPU build can't compute the model in it, and would go down at the first request.
    """
    if cpu and "linear_num_key_heads" in config.get("text_config", config):
        if name not in ("auto", "bfloat16"):
            raise ModelError(
                f"vLLM's CPU build computes Gated DeltaNet layers in bfloat16 alone, not in {name}: leave "
                "model.vlm.dtype out, or take engine=transformers"
            )
        return "bfloat16"
    return "float32" if name == "float64" or (cpu and name == "auto") else name


@contextlib.contextmanager
def _printing_to(output: IO[str] | None) -> Iterator[None]:
    """Children started inside, and this process meanwhile, print to the file if there is one."""
    if output is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _cause(output: IO[str] | None) -> str:
    """The error that a child process printed last before it went down; empty when there is none."""
    if output is None:
        return ""
    output.seek(0)
    errors = re.findall(r"\b(\w+(?:Error|Exception): .+)$", output.read(), re.MULTILINE)
    told = [error for error in errors if "Engine core initialization failed" not in error]
    return told[0] if told else ""


def _failure(model: ModelSettings, error: Exception, output: IO[str] | None) -> Exception:
    """What to tell the user when vLLM does not start: the child's error, with the mend if known."""
    cause = _cause(output) or f"{type(error).__name__}: {error}"
    if re.search(r"nvjitlink", cause, re.IGNORECASE):
        return ImportError(cause)
    if re.search(r"Free memory on device|No available memory for the cache|KV cache", cause):
        return ModelError(
            f"{model.name} does not fit into the memory that vLLM may use: end other programs on the GPU, "
            "lower model.vlm.max_context, or set engine.args.gpu_memory_utilization or, on the CPU, "
            f"engine.args.kv_cache_memory_bytes ({cause})"
        )
    return RuntimeError(cause)


class VllmEngine:
    """Engine over an `AsyncLLM`; lives on the event loop that opened it."""

    def __init__(
        self,
        llm: Any,
        chat: Chat,
        *,
        identity: str,
        concurrency: int,
        output: IO[str] | None,
        logits: bool = False,
        replicas: int = 1,
    ) -> None:
        self.identity = identity
        self.context_length: int | None = llm.model_config.max_model_len
        self.concurrency = concurrency
        cache = llm.vllm_config.cache_config
        self.kv_tokens: int | None = (cache.num_gpu_blocks or 0) * cache.block_size or None
        self._llm = llm
        self._chat = chat
        self._output = output
        self._logits = logits
        self._closed = False
        if output:
            output.truncate(0)  # what was printed while loading is not what an engine died of
        self._numbers = itertools.count()
        self._sent: OrderedDict[str, None] = OrderedDict()
        """Hashes of pictures that vLLM was given, the latest last."""
        self._flying = [0] * replicas
        """Requests in flight about pictures, by replica."""
        self._places: OrderedDict[str, int] = OrderedDict()
        """By picture's hash the replica that computes its tokens, the latest last."""
        self._told: dict[tuple[str, ...], list[list[int]]] = {}

    async def generate(self, request: Generate) -> Generated:
        """Write a reply. Equal seeds give equal replies up to the rounding of the batch they are in."""
        sampling = request.sampling
        random = sampling.temperature > 0
        output = await self._ask(
            request.prompt,
            [],
            sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p if random else 1.0,
            repetition_penalty=sampling.repetition_penalty,
            seed=request.seed % 2**63 if random else None,
            **_constraint(request.schema),
        )
        reply, usage = output.outputs[0], _usage(output)
        ended = finish(reply.finish_reason, usage.generated_tokens, sampling.max_tokens)
        said = self._chat.reply(list(reply.token_ids))
        usage = usage._replace(reasoning_tokens=said.reasoning_tokens)
        return Generated(said.text, ended, usage, said.reasoning)

    async def choose(self, request: Choose) -> Chosen:
        """Compare the options as the reply's first token; `mass` is exact, or nan from raw logits."""
        if request.options not in self._told:
            self._told[request.options] = option_token_ids(self._chat.encode, request.options)
        told = self._told[request.options]
        tokens = [token for option in told for token in option]
        output = await self._ask(request.prompt, [], 1, temperature=0.0, logprob_token_ids=tokens)
        logprobs = output.outputs[0].logprobs[0]
        most = max(logprobs[token].logprob for token in tokens) if self._logits else 0.0
        each = [math.fsum(math.exp(logprobs[token].logprob - most) for token in option) for option in told]
        chosen = Chosen.among(each, _usage(output))
        return dataclasses.replace(chosen, mass=math.nan) if self._logits else chosen

    async def score(self, request: Score) -> Scored:
        """Rate a text as the reply; tokens that share a character are told as one, summed."""
        tokens, spans = self._chat.spans(request.text)
        if not tokens:
            return Scored(())
        output = await self._ask(request.prompt, tokens, 1, temperature=0.0, prompt_logprobs=0)
        told = output.prompt_logprobs[-len(tokens) :]
        logprobs = iter([entry[token].logprob for entry, token in zip(told, tokens, strict=True)])
        sums = [(start, end, math.fsum(itertools.islice(logprobs, count))) for start, end, count in spans]
        if self._logits:
            scored = [Token(start, end, math.nan, value) for start, end, value in sums]
        else:
            scored = [Token(*each) for each in sums]
        return Scored(tuple(scored), _usage(output)._replace(generated_tokens=0))

    async def close(self) -> None:
        """End vLLM's processes and fail what is still in flight."""
        if self._closed:
            return
        self._closed = True
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm.output_processor.propagate_error(EngineDeadError())
        # Blocks the loop for a moment, so that vLLM's own task does not take the end for a failure.
        self._llm.shutdown()
        if self._output:
            self._output.close()
        # vLLM's object shuts down once more when it is collected, which fails at the interpreter's end.
        del self._llm
        gc.collect()

    async def _ask(self, prompt: Prompt, more: list[int], room: int, **sampling: Any) -> Any:
        """The `RequestOutput` to a prompt followed by more tokens, with at most `room` tokens of reply."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._closed:
            raise EngineDead("the engine is closed")
        ids = [*itertools.chain(*self._chat.turn(prompt)), *more]
        for known in (True, False):
            try:
                inputs = await self._render(ids, prompt, known)
                free = self._room(len(inputs["prompt_token_ids"]))
                params = SamplingParams(
                    max_tokens=min(room, free),
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    **sampling,
                )
                with self._placed(prompt) as replica:
                    outputs = self._llm.generate(
                        inputs, params, f"{next(self._numbers)}", data_parallel_rank=replica
                    )
                    (output,) = [output async for output in outputs]
            except EngineError:
                raise
            except EngineDeadError as error:
                why = "the engine is closed" if self._closed else _cause(self._output) or str(error)
                raise EngineDead(why) from error
            except Exception as error:
                if known and any(sign in str(error) for sign in _DROPPED):
                    continue
                cause = error.__cause__ or error
                raise EngineError(f"{type(cause).__name__}: {cause}") from error
            if output.outputs[0].finish_reason in ("stop", "length"):
                break
            # The picture was dropped over there, or the request was aborted.
        else:
            raise EngineError(f"vLLM gave the request up: {output.outputs[0].finish_reason}")
        if prompt.image:
            self._sent[prompt.image.hash] = None
            self._sent.move_to_end(prompt.image.hash)
            if len(self._sent) > _KNOWN_IMAGES:
                self._sent.popitem(last=False)
        return output

    @contextlib.contextmanager
    def _placed(self, prompt: Prompt) -> Iterator[int | None]:
        """The replica (data_parallel_size) that has the picture's tokens; None leaves the choice to vLLM."""
        if prompt.image is None or len(self._flying) == 1:
            yield None
            return
        freest = self._flying.index(min(self._flying))
        replica = self._places.setdefault(prompt.image.hash, freest)
        self._places.move_to_end(prompt.image.hash)
        if len(self._places) > _KNOWN_IMAGES:
            self._places.popitem(last=False)
        self._flying[replica] += 1
        try:
            yield replica
        finally:
            self._flying[replica] -= 1

    async def _render(self, ids: list[int], prompt: Prompt, known: bool) -> Any:
        """vLLM's own form of a prompt, the picture's tokens filled in; with pixels unless they are known."""
        self._room(len(ids))
        inputs: dict[str, Any] = {"prompt_token_ids": ids}
        if image := prompt.image:
            if not self._llm.model_config.is_multimodal_model:
                raise EngineError("this model sees no pictures: a step that shows it one needs another model")
            pixels = None if known and image.hash in self._sent else image.pixels
            inputs["multi_modal_data"] = {"image": [pixels]}
            inputs["multi_modal_uuids"] = {"image": [image.hash]}
        (rendered,) = await self._llm.renderer.render_cmpl_async([inputs])
        return rendered

    def _room(self, tokens: int) -> int:
        """Tokens that are left for the reply, at least one."""
        assert self.context_length is not None
        if tokens >= self.context_length:
            raise PromptTooLong(tokens, self.context_length)
        return self.context_length - tokens


def _constraint(schema: str | None) -> dict[str, Any]:
    """What holds a reply to a schema."""
    if schema is None:
        return {}
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(json=schema)}


def _usage(output: Any) -> Usage:
    generated = sum(len(reply.token_ids) for reply in output.outputs)
    return Usage(len(output.prompt_token_ids), output.num_cached_tokens, generated)
