"""The size of vLLM's encoder cache, a private field."""

from types import SimpleNamespace
from typing import Any

import pytest

from scalecap.engines.vllm import _enlarge_encoder_cache

GB = 1 << 30


def config(scheduler: Any, **vision: Any) -> Any:
    """What `_enlarge_encoder_cache` reads of vLLM's configuration: 1,000 values of 2 bytes a token."""
    hf_config = SimpleNamespace(vision_config=SimpleNamespace(**vision))
    model = SimpleNamespace(
        hf_config=hf_config, dtype=SimpleNamespace(itemsize=2), get_hidden_size=lambda: 1000
    )
    return SimpleNamespace(model_config=model, scheduler_config=scheduler)


@pytest.mark.parametrize(
    ("vision", "before", "after"),
    [
        ({}, 4096, GB // 2000),
        ({"deepstack_visual_indexes": [5, 11, 17]}, 4096, GB // 8000),
        ({}, 10**9, 10**9),
    ],
)
def test_it_holds_a_32nd_of_the_memory(vision: dict[str, Any], before: int, after: int) -> None:
    scheduler = SimpleNamespace(encoder_cache_size=before)
    assert _enlarge_encoder_cache(config(scheduler, **vision), 32 * GB) == ""
    assert scheduler.encoder_cache_size == after


def test_a_version_that_has_it_elsewhere_gets_a_warning() -> None:
    class Frozen:
        encoder_cache_size = property(lambda self: 4096)  # as in a frozen class

    for scheduler in (SimpleNamespace(), Frozen()):
        message = _enlarge_encoder_cache(config(scheduler), 32 * GB)
        assert "this version of vLLM" in message
        assert "encoder_cache_size" in message
        assert "rows_in_flight" in message
    assert "get_hidden_size" in _enlarge_encoder_cache(
        SimpleNamespace(model_config=SimpleNamespace(hf_config=None), scheduler_config=SimpleNamespace()), GB
    )
