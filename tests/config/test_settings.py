"""Which settings determine rows: a run resumes in its folder only while those are unchanged."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from scalecap.config.effects import affects, config_differences
from scalecap.config.settings import Settings

MAY_CHANGE = {
    *("output", "resume", "check", "progress", "objective", "report", "max_failures", "rows_in_flight"),
    *("write.format", "write.image", "write.select", "write.sidecars", "write.beside", "write.template"),
    *("write.prefix", "write.suffix"),
    *("cache.enabled", "cache.dir", "runner.name", "runner.actors", "runner.gpus_per_actor"),
    *("runner.address", "data.limit", "data.streaming", "data.allow_urls", "data.allow_outside"),
    *("engine.base_url", "engine.concurrency", "engine.batch_size", "engine.timeout", "engine.retries"),
    *("engine.price.prompt", "engine.price.cached", "engine.price.generated"),
    *("max_cost", "max_tokens", "max_requests", "preview", "edits"),
    *("engine.keep", "engine.quiet", "calibration", "pipeline.cases", "prompts"),
    *("data.context", "pipeline.verified"),  # they are part of the steps, and count there
}
"""Settings that change no row. A change of any other is refused."""


def leaves(value: Any, name: str = "") -> Iterator[str]:
    for field in fields(value):
        inner, whole = getattr(value, field.name), f"{name}.{field.name}".lstrip(".")
        yield from leaves(inner, whole) if is_dataclass(inner) else [whole]


def changed(config: Any, name: str) -> dict[str, Any]:
    """The config with another value of that name."""
    config = json.loads(json.dumps(config))
    group = config
    *groups, last = name.split(".")
    for each in groups:
        group = group[each]
    group[last] = {"another": "value"} if isinstance(group[last], dict) else "another"
    return config


def test_only_settings_that_change_no_row_may_change_on_resume():
    before = asdict(Settings())
    names = set(leaves(Settings()))
    assert names >= MAY_CHANGE
    free = {name for name in names if not config_differences(before, changed(before, name))}
    assert free == MAY_CHANGE


@pytest.mark.parametrize(
    ("before", "now", "differ"),
    [
        ({"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5}, {"max_num_seqs": 3}, ""),
        (
            {},
            {"tensor_parallel_size": 2, "load_format": "dummy"},
            "engine.args.load_format: was None, is dummy",
        ),
    ],
)
def test_arguments_of_vllm_that_change_no_reply_change_no_row(before: Any, now: Any, differ: str):
    configs = [asdict(Settings()) for _ in range(2)]
    configs[0]["engine"]["args"], configs[1]["engine"]["args"] = before, now
    assert config_differences(*configs) == differ


@pytest.mark.parametrize(
    ("key", "what"),
    [
        *(("output", "nothing"), ("cache.dir", "nothing"), ("cache", "nothing"), ("engine.quiet", "nothing")),
        *(("engine.batch_size", "cost"), ("data.limit", "cost"), ("runner.actors", "cost")),
        *(
            ("engine.name", "rows"),
            ("prompts/verify", "rows"),
            ("prompts.verify", "steps"),
            ("pipeline.steps.a.b", "rows"),
            ("x", "rows"),
        ),
    ],
)
def test_what_an_override_affects(key: str, what: str):
    assert affects(key) == what


def begin_again(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites the config that the journal begins with."""
    first, *rest = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    config = json.loads(first)
    change(config["config"])
    (folder / "journal.jsonl").write_text(json.dumps(config) + "\n" + "".join(rest))


def test_a_run_resumes_with_another_address_memory_share_and_streaming(typed, capsys):
    assert typed("data.limit=2", "output=out") == 0
    moved = ("engine.base_url=http://other:1/v1", "engine.args.gpu_memory_utilization=0.5")
    assert typed("data.limit=3", "output=out", "data.streaming=true", *moved) == 0
    assert "3 rows captioned (2 from an earlier run)" in capsys.readouterr().out
    assert typed("data.limit=3", "output=out", "engine.args.load_format=dummy") == 1
    assert "engine.args.load_format: was None, is dummy" in capsys.readouterr().err


def test_prompts_count_where_a_step_uses_them(typed, capsys):
    """Prompts of roles that came with an upgrade are in the config too, but no step uses them."""
    assert typed("data.limit=2", "output=out") == 0
    assert typed("data.limit=2", "output=out", "+prompts.new_role=Say something.") == 0
    assert typed("data.limit=2", "output=out", "prompts.verify='Sure? {{ text }}'") == 1
    assert "pipeline.steps.golden_sentences.prompt: was" in capsys.readouterr().err


def test_a_journal_from_before_an_upgrade_resumes(typed, tmp_path: Path, capsys):
    """Old ones lack settings that came since, and have some that no longer count."""
    assert typed("data.limit=2", "output=out") == 0

    def older(config: dict[str, Any]) -> None:
        del config["data"]["split"], config["engine"]["logprobs"], config["sampling"]["repetition_penalty"]
        config["engine"]["base_url"] = "http://here:1/v1"

    begin_again(tmp_path / "out", older)
    assert typed("data.limit=2", "output=out") == 0
    assert typed("data.limit=2", "output=out", "data.split=test") == 1
    assert "data.split: was train, is test" in capsys.readouterr().err
