"""An engine's identity: all that determines its replies, part of every key of the reply cache.

All settings that differ from their defaults are part of it, so a new setting is safe by default. Settings
that can't change a reply are excluded by name: in `settings.py` at the field (`affects`), or here.
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
    # parallelism and batching: sums are computed in another order, so the last digits may differ
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_backend"),
    *("enable_expert_parallel", "distributed_executor_backend", "disable_custom_all_reduce"),
    *("mm_encoder_tp_mode", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill"),
    *("enable_prefix_caching", "async_scheduling", "enforce_eager", "device_ids"),
    # download, loading, logging
    *("download_dir", "hf_token", "max_parallel_loading_workers", "use_tqdm_on_load", "served_model_name"),
    *("disable_log_stats", "enable_log_requests", "aggregate_engine_logging"),
)
"""Arguments of vLLM (`engine.args`) that can't change a reply beyond rounding; all others count."""

_SERVER_SETTINGS = ("base_url", "identity", "logprobs")
"""Settings of engine=openai that say where and what the server is."""
_EXCLUDED = {
    # `resolved` has the commit or a digest of the weights, and the dtype in use.
    "transformers": {"revision", "dtype", "args", "extra_body", "jpeg_quality", *_SERVER_SETTINGS},
    "vllm": {"revision", "dtype", "extra_body", "jpeg_quality", *_SERVER_SETTINGS},
    # The server decides about its weights.
    "openai": {"revision", "dtype", "trust_remote_code", "min_pixels", "args", *_SERVER_SETTINGS},
}
"""By engine, settings that it does not use, or that `resolved` contains in a better form; for engines of
other packages all settings count."""


def identity(engine: str, resolved: str, model: "ModelSettings", settings: "EngineSettings") -> str:
    """One readable line for the keys of the cache.

    Args:
        engine: `transformers`, `vllm`, `openai`, or `package/name` for an engine of another package.
        resolved: the model that the settings led to, e.g. `name@commit bfloat16`. It must contain what
            matters of `name` and `base_url`, which are not added to the identity.
    """
    return " ".join([engine, resolved, *_changed(engine, model), *_changed(engine, settings)])


def _changed(engine: str, settings: Any) -> Iterator[str]:
    """`key=value` of each setting that affects replies and is not at its default."""
    excluded = _EXCLUDED.get(engine, set())
    for field in fields(settings):
        value = getattr(settings, field.name)
        if (
            field.name in ("name", "engine", *excluded)
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
