"""An engine's identity: all that determines its replies. It is part of every key of the reply cache.

Every setting that is given counts, so that a new one counts by default. Those that cannot change a reply are
excluded by name: in `settings.py`, at the field's definition (`affects`), or here.
"""

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalecap.engines.settings import EngineSettings, ModelSettings

HARMLESS_ARGS = (
    # memory
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "num_gpu_blocks_override", "cpu_offload_gb"),
    *("mm_processor_cache_gb", "mm_processor_cache_type", "mm_shm_cache_max_object_size_mb"),
    # how the work is split and batched: the same sums in another order, so that last digits may differ
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_backend"),
    *("enable_expert_parallel", "distributed_executor_backend", "disable_custom_all_reduce"),
    *("mm_encoder_tp_mode", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill"),
    *("enable_prefix_caching", "async_scheduling", "enforce_eager", "device_ids"),
    # fetching, loading, logging
    *("download_dir", "hf_token", "max_parallel_loading_workers", "use_tqdm_on_load", "served_model_name"),
    *("disable_log_stats", "enable_log_requests", "aggregate_engine_logging"),
)
"""Arguments of vLLM (`engine.args`) that cannot change a reply beyond rounding. All others count."""

_SERVED = ("base_url", "identity", "logprobs")
"""Settings by which engine=openai tells where and what the server is."""
_UNREAD = {
    # A commit, or a digest of the weights, and the dtype that was settled on stand in `found`.
    "transformers": {"revision", "dtype", "args", "extra_body", "jpeg_quality", *_SERVED},
    "vllm": {"revision", "dtype", "extra_body", "jpeg_quality", *_SERVED},
    # The server chose its weights.
    "openai": {"revision", "dtype", "trust_remote_code", "min_pixels", "args", *_SERVED},
}
"""By engine, settings that it does not read, or that `found` says better; of other packages' all count."""


def identity(engine: str, found: str, model: "ModelSettings", settings: "EngineSettings") -> str:
    """One line for the cache's keys and for reading.

    Args:
        engine: `transformers`, `vllm`, `openai`, or `package/name` of another package's.
        found: what the engine found the model to be, e.g. `name@commit bfloat16`; stands for the settings
            that led to it, and for `name` and `base_url`, which never count by themselves.
    """
    return " ".join([engine, found, *_given(engine, model), *_given(engine, settings)])


def _given(engine: str, settings: Any) -> Iterator[str]:
    """`key=value` of each setting that counts and is not at its default."""
    unread = _UNREAD.get(engine, set())
    for field in fields(settings):
        value = getattr(settings, field.name)
        if (
            field.name in ("name", "engine", *unread)
            or "affects" in field.metadata
            or value == _default(field)
        ):
            continue
        if not isinstance(value, dict):
            yield f"{field.name}={value}"
            continue
        harmless = field.metadata.get("harmless", ()) if engine == "vllm" else ()
        for key in sorted(value.keys() - harmless):
            yield f"{field.name}.{key}={json.dumps(value[key], sort_keys=True, default=str)}"


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
