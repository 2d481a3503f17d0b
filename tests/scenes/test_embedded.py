"""The trained model that comes with the package, through the real pipeline.

`python tests/scenes/test_embedded.py` rewrites the expected captions, after another training.
"""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

from runs import Compose, captions

from scalecap.config.compose import from_config
from scalecap.config.settings import CONF, Settings
from scalecap.engines import embedded_model
from scalecap.runner import process_engines, run

pytestmark = pytest.mark.slow
SAID = Path(__file__).with_name("embedded.json")
"""Rows of the first two sample images, decoded greedily on the transformers engine."""
ROWS = ["data.limit=2", "sampling=greedy", "engine=transformers", "cache=off", "progress=false"]


def measured(settings: Settings) -> dict[str, float]:
    found = {name: each.mean for name, each in run(settings).metrics.items()}
    process_engines.close()
    return found


def captioned(settings: Settings) -> list[dict[str, Any]]:
    run(settings)
    process_engines.close()
    return captions(settings.output)


def test_captions_are_unchanged(compose: Compose) -> None:
    for row, said in zip(captioned(compose(*ROWS)), json.loads(SAID.read_text("utf-8")), strict=True):
        assert row.keys() == said.keys()
        for name, value in said.items():
            if name.endswith("_scores"):
                assert [score["text"] for score in row[name]] == [score["text"] for score in value]
                p_yes = [score["p_yes"] for score in row[name]]
                assert p_yes == pytest.approx([score["p_yes"] for score in value], abs=1e-3)
            else:
                assert row[name] == value


def test_checking_halves_the_error_rate_and_asking_adds_true_facts(compose: Compose) -> None:
    words = ("data.count=32", "data.seed=3", "engine=transformers", "progress=false", "evaluate=scenes")
    drawn = "pipeline.steps.init_caption.sampling={temperature: 1.0, top_p: 1.0}"  # so that it errs
    found = measured(compose(*words, drawn))
    first, final = (1 - found[f"scenes.{name}.precision"] for name in ("init_caption", "final_caption"))
    assert first > 0.2  # of the captions it learned from, 27 % of the facts are wrong
    assert final <= first / 2
    assert found["scenes.final_caption.true"] >= 1.3 * found["scenes.init_caption.true"]


def test_checks_are_accurate(compose: Compose) -> None:
    words = ("pipeline=none", "evaluate=scenes_verifier", "data.count=40", "data.seed=99")
    found = measured(compose(*words, "engine=transformers", "progress=false"))
    assert found["verifier.balanced_accuracy"] >= 0.94  # over more statements 0.97; see the model card


def test_size_and_model_card() -> None:
    assert sum(file.stat().st_size for file in embedded_model().iterdir()) < 25 * 2**20
    assert "balanced accuracy" in (embedded_model() / "README.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    import hydra

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        config = hydra.compose("config", [f"output={folder}", *ROWS])
        SAID.write_text(json.dumps(captioned(from_config(config)), indent=1) + "\n", encoding="utf-8")
