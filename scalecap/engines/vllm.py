"""Engine that runs vLLM in child processes, on GPUs or with vLLM's CPU build.

* Prompts go to vLLM as token ids made by `ChatTokenizer`, so control tokens inside a text stay text.
* Images are identified by their hash. Pixels are sent once; as long as vLLM has the processed image, requests
  contain the hash only, and if it was evicted the pixels are sent again.
* `choose` generates one token and gets the log-probabilities of the options' first tokens, from the
  unconstrained distribution. `score` is one prefill with `prompt_logprobs`, without the prefix cache. By
  default vLLM returns log-probabilities, so a scored `Token` has no `logit`; with
  `engine.args.logprobs_mode=raw_logits` it has only that, and the `mass` of a choice is unknown.

On the CPU it runs eagerly in float32, as the transformers engine does, with a context of at most 8,192 tokens
unless `model.vlm.max_context` is larger; models with Gated DeltaNet layers run in bfloat16, the only type
that the CPU kernels support. Replies may differ from the transformers engine's for images that are scaled:
the bicubic filters of the libraries round differently.
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
    finish_reason,
)
from scalecap.engines.chat_template import ChatTokenizer
from scalecap.engines.child_output import printed_error, redirect_output
from scalecap.engines.compat import patch_libraries, patched_children
from scalecap.engines.identity import identity
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError, Weights, find_weights, load_errors, weights_size
from scalecap.text.suggestions import did_you_mean

log = logging.getLogger(__name__)

_CPU_CONTEXT = 8192
"""Default context length on the CPU, in tokens."""
_CPU_KV_CACHE = 4 << 30
"""Default size of the KV cache on the CPU, in bytes."""
_ENCODER_CACHE_SHARE = 1 / 32
"""Share of the device's memory for encoded images, taken from `gpu_memory_utilization`."""
_MAX_TRACKED_IMAGES = 4096
_EVICTED = ("data is not provided", "Expected a cached item")
"""Errors of vLLM about an image that was sent as a hash only and is no longer in its cache."""


async def open_vllm(
    model: ModelSettings, engine: EngineSettings, colocated: Sequence[ModelSettings] = ()
) -> "VllmEngine":
    """Starts vLLM with a model; blocks the event loop while it loads.

    Args:
        colocated: other models that share `gpu_memory_utilization` with it.

    Raises:
        ModelError: it can't be loaded; the message says how to fix it.
    """
    # vLLM reads these when it is imported.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # By default the CPU build leaves one core free, half of a small machine.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    # A fork would copy locks held by threads of this process.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if engine.quiet:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if importlib.util.find_spec("vllm") is None:
        raise ModuleNotFoundError("vLLM is not installed", name="vllm")
    weights = find_weights(model)
    output = tempfile.TemporaryFile("a+") if engine.quiet else None  # noqa: SIM115 (lives as long as the engine)
    with load_errors(model), redirect_output(output):
        patch_libraries()
        import transformers
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        cpu = current_platform.is_cpu()
        _check_args(engine.args, [field.name for field in dataclasses.fields(AsyncEngineArgs)])
        arguments = _arguments(model, weights, cpu) | engine.args
        if not cpu:
            share = arguments.get("gpu_memory_utilization", AsyncEngineArgs.gpu_memory_utilization)
            if colocated:
                gpus = arguments.get("tensor_parallel_size", 1) * arguments.get("pipeline_parallel_size", 1)
                sizes = [weights_size(each) / gpus for each in (model, *colocated)]
                share = memory_share(share, current_platform.get_device_total_memory(), sizes)
            encoder_cache = _ENCODER_CACHE_SHARE if "vision_config" in weights.config else 0.0
            arguments["gpu_memory_utilization"] = share - encoder_cache
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            weights.folder, trust_remote_code=model.trust_remote_code
        )
        try:
            with patched_children():
                # This context selects vLLM's defaults for throughput.
                context = UsageContext.LLM_CLASS
                config = AsyncEngineArgs(**arguments).create_engine_config(context)
                dtype = str(config.model_config.dtype).removeprefix("torch.")
                replicas = config.parallel_config.data_parallel_size
                parts = config.model_config.is_multimodal_model
                chat = ChatTokenizer(tokenizer, weights.chat_template(), parts, model.chat_template_kwargs)
                warnings = chat.warnings(model.name)
                if parts:
                    memory = current_platform.get_device_total_memory()
                    warnings += filter(None, [_enlarge_encoder_cache(config, memory)])
                opened = VllmEngine(
                    AsyncLLM.from_vllm_config(config, usage_context=context, disable_log_stats=True),
                    chat,
                    identity=identity("vllm", f"{weights.content} {dtype}", model, engine),
                    concurrency=engine.concurrency
                    or min(config.scheduler_config.max_num_seqs, 32 if cpu else 256) * replicas,
                    output=output,
                )
        except Exception as error:
            raise _startup_error(model, error, output) from error
    # Not earlier: inside the block all output goes to the file.
    for line in warnings:
        log.warning(line)
    return opened


def _check_args(args: dict[str, Any], known: list[str]) -> None:
    """Raises ModelError for arguments that vLLM does not have, or that this engine needs to set itself."""
    for key in args:
        if key not in known:
            raise ModelError(f"engine.args.{key}: vLLM has no such argument{did_you_mean(key, known)}")
    for key, instead in (("model", "model.vlm.name"), ("revision", "model.vlm.revision")):
        if key in args:
            raise ModelError(f"engine.args.{key}: set {instead} instead, for each role")
    if args.get("speculative_config"):
        raise ModelError(
            "engine.args.speculative_config: vLLM returns no log-probabilities with speculative decoding, and"
            " choices are read from them; use a server with speculative decoding for a role that only"
            " generates text: model.llm.engine={name: openai, base_url: …}"
        )
    if args.get("logprobs_mode", "raw_logprobs") not in ("raw_logprobs", "raw_logits"):
        raise ModelError(
            f"engine.args.logprobs_mode={args['logprobs_mode']}: expected raw_logprobs or raw_logits"
        )


def _arguments(model: ModelSettings, weights: Weights, cpu: bool) -> dict[str, Any]:
    """Default arguments of vLLM, which `engine.args` overrides."""
    config = weights.config
    arguments: dict[str, Any] = {
        "model": str(weights.folder),
        "dtype": _dtype(model.dtype, cpu, config),
        "trust_remote_code": model.trust_remote_code,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # -1: as long as the memory left by the weights allows.
        "max_model_len": model.max_context or -1,
    }
    if weights.config_overrides:
        arguments["hf_overrides"] = weights.config_overrides
    if "vision_config" in config:
        # No memory is reserved for what is never sent.
        arguments["limit_mm_per_prompt"] = {"image": 1, "video": 0}
    bounds = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
    if bounds := {key: value for key, value in bounds.items() if value}:
        arguments["mm_processor_kwargs"] = bounds
    if cpu:
        longest = {**config, **config.get("text_config", {})}.get("max_position_embeddings", _CPU_CONTEXT)
        context = min(longest, model.max_context or _CPU_CONTEXT)
        arguments |= {"enforce_eager": True, "max_model_len": context, "kv_cache_memory_bytes": _CPU_KV_CACHE}
    return arguments


def memory_share(share: float, memory: int, weights: Sequence[float]) -> float:
    """The first model's share of the device's memory: its weights, and an equal part of what all weights
    leave.

    By default vLLM takes all memory that it may use, and does not start if less is free.

    Args:
        share: share of the device's memory that all models may use, 0 to 1.
        memory: size of the device's memory in bytes.
        weights: size of each model's weights on the device in bytes.
    """
    rest = (share * memory - sum(weights)) / len(weights)
    return (weights[0] + rest) / memory


def _enlarge_encoder_cache(config: Any, memory: int) -> str:
    """Enlarges vLLM's encoder cache, so that images stay encoded while their rows are in flight.

    By default it holds as many image tokens as a batch, those of a few images. Other images are encoded again
    for every text, though all but the last few of their tokens are in the KV cache: a block that ends in text
    can only be used for that text.

    The field is not public; versions other than 0.32 may have it elsewhere.

    Args:
        config: vLLM's `VllmConfig`, changed in place.
        memory: size of the device's memory in bytes.

    Returns:
        A warning if it could not be done, else an empty string.
    """
    try:
        model, scheduler = config.model_config, config.scheduler_config
        vision = getattr(model.hf_config, "vision_config", None)
        layers = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
        token = model.get_hidden_size() * layers * model.dtype.itemsize
        scheduler.encoder_cache_size = max(
            scheduler.encoder_cache_size, int(memory * _ENCODER_CACHE_SHARE / token)
        )
    except AttributeError as error:
        return (
            f"the encoder cache of this version of vLLM can't be enlarged ({error}): images are encoded"
            " repeatedly if many rows are in flight. Captions are the same; set rows_in_flight lower or"
            " engine.args.max_num_batched_tokens higher to save time"
        )
    return ""


def _dtype(name: str, cpu: bool, config: dict[str, Any]) -> str:
    """vLLM's name of the dtype to compute in; float32 instead of float64, which vLLM does not support.

    Raises:
        ModelError: vLLM's CPU build does not support the dtype for this model, and would die at the first
            request.
    """
    if cpu and "linear_num_key_heads" in config.get("text_config", config):
        if name not in ("auto", "bfloat16"):
            raise ModelError(
                f"vLLM's CPU build computes Gated DeltaNet layers in bfloat16 only, not in {name}: remove "
                "model.vlm.dtype, or use engine=transformers"
            )
        return "bfloat16"
    return "float32" if name == "float64" or (cpu and name == "auto") else name


def _startup_error(model: ModelSettings, error: Exception, output: IO[str] | None) -> Exception:
    """The error to raise if vLLM does not start: the child's error, with the fix if it is known."""
    cause = printed_error(output) or f"{type(error).__name__}: {error}"
    if re.search(r"nvjitlink", cause, re.IGNORECASE):
        return ImportError(cause)
    if re.search(r"Free memory on device|No available memory for the cache|KV cache", cause):
        return ModelError(
            f"{model.name} does not fit into the memory that vLLM may use: stop other programs on the GPU, "
            "lower model.vlm.max_context, or set engine.args.gpu_memory_utilization or, on the CPU, "
            f"engine.args.kv_cache_memory_bytes ({cause})"
        )
    return RuntimeError(cause)


class VllmEngine:
    """Engine over an `AsyncLLM`; lives on the event loop that opened it."""

    def __init__(
        self, llm: Any, chat: ChatTokenizer, *, identity: str, concurrency: int, output: IO[str] | None
    ) -> None:
        self.identity = identity
        self.context_length: int | None = llm.model_config.max_model_len
        self.concurrency = concurrency
        cache = llm.vllm_config.cache_config
        self.kv_tokens: int | None = (cache.num_gpu_blocks or 0) * cache.block_size or None
        self._llm = llm
        self._chat = chat
        self._output = output
        self._raw_logits = llm.model_config.logprobs_mode == "raw_logits"
        self._closed = False
        if output:
            output.truncate(0)  # errors printed while loading are not the cause of a later death
        self._request_ids = itertools.count()
        self._sent_images: OrderedDict[str, None] = OrderedDict()
        """Hashes of images whose pixels vLLM has received, least recently used first."""
        self._in_flight = [0] * llm.vllm_config.parallel_config.data_parallel_size
        """Number of requests with images in flight, by replica."""
        self._replicas: OrderedDict[str, int] = OrderedDict()
        """By image hash, the replica that has its tokens in the KV cache, least recently used first."""

    async def generate(self, request: Generate) -> Generated:
        """Generates a reply. Equal seeds give equal replies, up to rounding that depends on the batch."""
        sampling = request.sampling
        random = sampling.temperature > 0
        output = await self._generate(
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
        finish = finish_reason(reply.finish_reason, usage.generated_tokens, sampling.max_tokens)
        decoded = self._chat.decode_reply(list(reply.token_ids))
        usage = usage._replace(reasoning_tokens=decoded.reasoning_tokens)
        return Generated(decoded.text, finish, usage, decoded.reasoning)

    async def choose(self, request: Choose) -> Chosen:
        """Compares the options as the reply's first token; `mass` is exact, or nan with raw logits."""
        option_ids = self._chat.option_ids(request.options)
        tokens = [token for ids in option_ids for token in ids]
        output = await self._generate(request.prompt, [], 1, temperature=0.0, logprob_token_ids=tokens)
        logprobs = output.outputs[0].logprobs[0]
        largest = max(logprobs[token].logprob for token in tokens) if self._raw_logits else 0.0
        option_probs = [
            math.fsum(math.exp(logprobs[token].logprob - largest) for token in ids) for ids in option_ids
        ]
        chosen = Chosen.normalized(option_probs, _usage(output))
        return dataclasses.replace(chosen, mass=math.nan) if self._raw_logits else chosen

    async def score(self, request: Score) -> Scored:
        """Scores a text as the reply; tokens that share a character are returned as one, summed."""
        tokens, spans = self._chat.encode_with_spans(request.text)
        if not tokens:
            return Scored(())
        output = await self._generate(request.prompt, tokens, 1, temperature=0.0, prompt_logprobs=0)
        entries = output.prompt_logprobs[-len(tokens) :]
        logprobs = iter([entry[token].logprob for entry, token in zip(entries, tokens, strict=True)])
        sums = [(start, end, math.fsum(itertools.islice(logprobs, count))) for start, end, count in spans]
        if self._raw_logits:
            scored = [Token(start, end, math.nan, value) for start, end, value in sums]
        else:
            scored = [Token(*each) for each in sums]
        return Scored(tuple(scored), _usage(output)._replace(generated_tokens=0))

    async def close(self) -> None:
        """Stops vLLM's processes and fails requests in flight."""
        if self._closed:
            return
        self._closed = True
        from vllm.v1.engine.exceptions import EngineDeadError

        self._llm.output_processor.propagate_error(EngineDeadError())
        # Blocks the loop for a moment, so that vLLM's own task does not report the shutdown as a failure.
        self._llm.shutdown()
        if self._output:
            self._output.close()
        # vLLM's object shuts down again when it is collected, which fails at interpreter exit.
        del self._llm
        gc.collect()

    async def _generate(self, prompt: Prompt, extra: list[int], max_tokens: int, **sampling: Any) -> Any:
        """The `RequestOutput` for a prompt.

        Args:
            extra: token ids after the prompt's.
            sampling: other arguments of `SamplingParams`.

        Raises:
            EngineError: the request failed; PromptTooLong and EngineDead among others.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._closed:
            raise EngineDead("the engine is closed")
        ids = [*itertools.chain(*self._chat.encode_prompt(prompt)), *extra]
        for cached in (True, False):
            try:
                inputs = await self._render(ids, prompt, cached)
                free = self._free_tokens(len(inputs["prompt_token_ids"]))
                params = SamplingParams(
                    max_tokens=min(max_tokens, free),
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    **sampling,
                )
                with self._replica(prompt) as replica:
                    outputs = self._llm.generate(
                        inputs, params, f"{next(self._request_ids)}", data_parallel_rank=replica
                    )
                    (output,) = [output async for output in outputs]
            except EngineError:
                raise
            except EngineDeadError as error:
                why = "the engine is closed" if self._closed else printed_error(self._output) or str(error)
                raise EngineDead(why) from error
            except Exception as error:
                if cached and any(sign in str(error) for sign in _EVICTED):
                    continue
                cause = error.__cause__ or error
                raise EngineError(f"{type(cause).__name__}: {cause}") from error
            if output.outputs[0].finish_reason in ("stop", "length"):
                break
            # The engine process has evicted the image, or the request was aborted.
        else:
            raise EngineError(f"vLLM aborted the request: {output.outputs[0].finish_reason}")
        if prompt.image:
            self._sent_images[prompt.image.hash] = None
            self._sent_images.move_to_end(prompt.image.hash)
            if len(self._sent_images) > _MAX_TRACKED_IMAGES:
                self._sent_images.popitem(last=False)
        return output

    @contextlib.contextmanager
    def _replica(self, prompt: Prompt) -> Iterator[int | None]:
        """The replica (data_parallel_size) with the image's tokens; None lets vLLM choose."""
        if prompt.image is None or len(self._in_flight) == 1:
            yield None
            return
        idlest = self._in_flight.index(min(self._in_flight))
        replica = self._replicas.setdefault(prompt.image.hash, idlest)
        self._replicas.move_to_end(prompt.image.hash)
        if len(self._replicas) > _MAX_TRACKED_IMAGES:
            self._replicas.popitem(last=False)
        self._in_flight[replica] += 1
        try:
            yield replica
        finally:
            self._in_flight[replica] -= 1

    async def _render(self, ids: list[int], prompt: Prompt, cached: bool) -> Any:
        """vLLM's input for a prompt, with all image tokens; without pixels if vLLM may have them `cached`."""
        self._free_tokens(len(ids))
        inputs: dict[str, Any] = {"prompt_token_ids": ids}
        if image := prompt.image:
            if not self._llm.model_config.is_multimodal_model:
                raise EngineError("this model accepts no images: give the step another model")
            pixels = None if cached and image.hash in self._sent_images else image.pixels
            inputs["multi_modal_data"] = {"image": [pixels]}
            inputs["multi_modal_uuids"] = {"image": [image.hash]}
        (rendered,) = await self._llm.renderer.render_cmpl_async([inputs])
        return rendered

    def _free_tokens(self, tokens: int) -> int:
        """Tokens left for the reply, at least one. Raises PromptTooLong if there is none."""
        assert self.context_length is not None
        if tokens >= self.context_length:
            raise PromptTooLong(tokens, self.context_length)
        return self.context_length - tokens


def _constraint(schema: str | None) -> dict[str, Any]:
    """Arguments of `SamplingParams` for constrained decoding."""
    if schema is None:
        return {}
    from vllm.sampling_params import StructuredOutputsParams

    return {"structured_outputs": StructuredOutputsParams(json=schema)}


def _usage(output: Any) -> Usage:
    generated = sum(len(reply.token_ids) for reply in output.outputs)
    return Usage(len(output.prompt_token_ids), output.num_cached_tokens, generated)
