"""Sweeps: what they compute, which engines they load, what they report, launchers and sweepers."""

import csv
import json
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import python
from runs import Command, Rows, captions

import scalecap.engines
from scalecap.cli.sweep import order_overrides
from scalecap.engines import Engines
from scalecap.engines.base import Request
from scalecap.engines.scripted import Scripted
from scalecap.engines.settings import EngineSettings, ModelSettings, RoleSettings

THRESHOLD = "pipeline.steps.golden_sentences.threshold"


def summaries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))]


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))


@pytest.mark.parametrize("sweep", ["0.3,0.5,0.7", "range(0.3,0.8,0.2)", "choice(0.3,0.5,0.7)"])
def test_a_threshold_sweep_computes_nothing_new(typed: Command, tmp_path: Path, sweep: str):
    assert typed("-m", f"{THRESHOLD}={sweep}", "data.limit=3", "hydra.sweep.dir=sweep") == 0
    first, *others = summaries(tmp_path / "sweep")
    assert first["requests"]["total"] > first["requests"]["reused"]
    assert len(others) == 2
    for each in others:
        assert each["requests"]["total"] == each["requests"]["reused"] == first["requests"]["total"]
        assert (each["tokens"]["prompt"], each["tokens"]["generated"]) == (0, 0)
    costs = {(line["prompt tokens"], line["generated tokens"]) for line in table(tmp_path / "sweep")}
    assert len(costs) == 1  # what each would have cost alone


def test_a_resumed_job_costs_what_its_rows_did(typed: Command, tmp_path: Path):
    def costs() -> list[tuple[str, str]]:
        return [(line["prompt tokens"], line["generated tokens"]) for line in table(tmp_path / "sweep")]

    words = ("-m", "seed=1,2", "pipeline=direct", "hydra.sweep.dir=sweep")
    assert typed(*words, "data.limit=2") == 0
    first = costs()
    assert typed(*words, "data.limit=2") == 0
    assert costs() == first
    assert typed(*words, "data.limit=4") == 0
    assert costs() == [(str(2 * int(prompt)), str(2 * int(generated))) for prompt, generated in first]


def test_a_prompt_sweep_computes_only_what_the_prompt_changes(typed: Command, tmp_path: Path):
    assert typed("-m", "prompts/verify=compact,strict", "data.limit=2", "hydra.sweep.dir=sweep") == 0
    _, second = summaries(tmp_path / "sweep")
    computed = {name: each["requests"] - each["reused"] for name, each in second["steps"].items()}
    assert {name for name, count in computed.items() if count} == {"golden_sentences"}


def test_a_sweep_ends_with_a_comparison(typed: Command, tmp_path: Path, capsys: Any):
    words = ("-m", f"{THRESHOLD}=0.05,2,0.5", "data.limit=2", "hydra.sweep.dir=sweep")
    assert typed(*words) == 1
    first, failed, last = table(tmp_path / "sweep")
    assert [line["status"] for line in (first, failed, last)] == ["finished", "failed", "finished"]
    assert "expected a probability between 0 and 1, got 2.0" in failed["reason"]
    assert (first["golden_sentences kept"], last["golden_sentences kept"]) == ("1.0", "0.5")
    assert last["golden_sentences kept difference"] == "-0.5"
    assert (failed["golden_sentences kept"], failed["seconds"]) == ("", "")
    out, err = capsys.readouterr()
    assert "expected a probability between 0 and 1, got 2.0" in err
    assert "Comparison" in out
    for suffix in ("md", "csv", "html"):
        path = Path("sweep") / f"comparison.{suffix}"
        assert str(path) in out
        assert path.stat().st_size > 100

    # The corrected job replaces the failed one.
    assert typed("-m", f"{THRESHOLD}=0.05,0.6,0.5", "data.limit=2", "hydra.sweep.dir=sweep") == 0
    assert [line["status"] for line in table(tmp_path / "sweep")] == ["finished"] * 3


def test_a_refused_job_is_shown_as_failed_and_the_run_in_its_folder_is_kept(typed: Command, tmp_path: Path):
    assert typed("-m", f"{THRESHOLD}=0.3,0.5", "data.limit=1", "hydra.sweep.dir=sweep") == 0
    before = {path.name: path.read_text() for path in (tmp_path / "sweep" / "0" / ".hydra").iterdir()}
    for threshold in (0.4, 2):  # other settings, and invalid ones
        words = f"{THRESHOLD}={threshold},0.5"
        assert typed("-m", words, "data.limit=1", "hydra.sweep.dir=sweep") == 1
        first, second = table(tmp_path / "sweep")
        assert (first["status"], first["words"], second["status"]) == ("failed", "", "finished")
        assert str(threshold) in first["reason"]
        after = {path.name: path.read_text() for path in (tmp_path / "sweep" / "0" / ".hydra").iterdir()}
        assert after == before
    assert typed("compare", "sweep") == 0
    first, second = table(tmp_path / "sweep")
    assert (first["status"], first[THRESHOLD], first["rows done"]) == ("finished", "0.3", "1")


def test_a_sweep_continues_whatever_a_job_raises(
    typed: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engines: dict[str, Scripted]
):
    async def open_engine(model: Any, engine: Any, beside: Any) -> Scripted:
        if model.name != "scenes":
            raise MemoryError("no room for it")
        return engines["vlm"]

    monkeypatch.setattr(scalecap.engines, "open_engine", open_engine)
    assert typed("-m", "model=qwen2.5-vl-3b,scenes", "data.limit=1", "hydra.sweep.dir=sweep") == 1
    first, second = table(tmp_path / "sweep")
    assert (first["reason"], second["status"]) == ("MemoryError: no room for it", "finished")


def test_failed_rows_of_any_job_exit_with_3(typed: Command, rows: Rows):
    assert typed("-m", f"{THRESHOLD}=0.3,0.5", "data=jsonl", rows(3, broken=(1,)), "hydra.sweep.dir=s") == 3


@pytest.fixture
def engine_events(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Request], Any]) -> list[str]:
    """The engines opened and closed, in order."""
    seen: list[str] = []

    class Engine(Scripted):
        async def close(self) -> None:
            seen.append(f"close {self.identity}")

    async def open_engine(model: Any, engine: Any, beside: Any) -> Scripted:
        seen.append(" beside ".join([f"open {model.name}", *(other.name for other in beside)]))
        return Engine(answer, identity=model.name)

    monkeypatch.setattr(scalecap.engines, "open_engine", open_engine)
    return seen


@pytest.mark.parametrize("threshold_first", [True, False])
def test_each_model_is_opened_once_and_the_one_before_is_closed(
    command: Command, engine_events: list[str], threshold_first: bool
):
    words = [f"{THRESHOLD}=0.3,0.5", "model.vlm.name=a,b", "model=own"]
    assert command("-m", *(words if threshold_first else reversed(words)), "data.limit=1") == 0
    assert engine_events == ["open a", "close a", "open b", "close b"]


def test_models_of_one_run_are_opened_knowing_each_other(command: Command, engine_events: list[str]):
    assert command("model=own", "model.vlm.name=a", "model.llm.name=b", "data.limit=1") == 0
    assert engine_events[:2] == ["open a beside b", "open b beside a"]


def test_both_models_are_kept_with_engine_keep(command: Command, engine_events: list[str]):
    assert command("-m", "model=own", "model.vlm.name=a,b", "engine.keep=true", "data.limit=1") == 0
    assert engine_events == ["open a", "open b", "close a", "close b"]


def test_model_overrides_come_first_but_only_in_a_sweep():
    words = ["a=1,2", "engine.args.x=1", "-m", "model=x,y", "b=3"]
    assert order_overrides(words) == ["-m", "engine.args.x=1", "model=x,y", "a=1,2", "b=3"]
    assert order_overrides(["b=3", "model=x"]) == ["b=3", "model=x"]


def test_a_closed_engine_leaves_no_model_in_memory():
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    engines = Engines()

    async def open_(dtype: str) -> Any:
        role = RoleSettings(ModelSettings("scenes", dtype=dtype), EngineSettings())
        opened = await engines.by_role({"vlm": role})
        return weakref.ref(opened["vlm"]._runner)  # type: ignore[attr-defined]

    first = engines.run(open_("float32"))
    assert first() is not None
    second = engines.run(open_("float64"))
    assert first() is None
    engines.close()
    assert second() is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("objective=final_caption", "objective=final_caption: no step final_caption writes numbers"),
        ("evaluate=scenes|objective=scene.f1", "did you mean 'scenes'"),
        ("-m|hydra/sweeper=optuna|seed=1,2", "this sweeper requires objective="),
    ],
)
def test_an_objective_that_no_step_writes_gives_one_message(
    typed: Command, opened: list[Any], capsys: Any, words: str, message: str
):
    if "optuna" in words:
        pytest.importorskip("optuna", reason='needs pip install "scalecap[sweeps]"')
    assert typed(*words.split("|")) == 1
    assert message in capsys.readouterr().err
    assert not opened


def test_an_objective_that_no_row_has_ends_a_search(typed: Command, tmp_path: Path, capsys: Any):
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip('needs pip install "scalecap[sweeps]"')
    words = ["evaluate=scenes", "objective=scenes.nothing", "data.limit=1", "seed=choice(1,2)"]
    words += ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "hydra.sweep.dir=sweep"]
    assert typed("-m", *words) == 1
    assert "no row has objective=scenes.nothing; available metrics: scenes." in capsys.readouterr().err
    assert "scenes.nothing" in (tmp_path / "sweep" / "0" / ".hydra" / "error.txt").read_text()


def test_optuna_finds_the_best_threshold(command: Command, tmp_path: Path):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip('needs pip install "scalecap[sweeps]"')
    best, threshold = "verifier.balanced_accuracy", "pipeline.steps.verifier.threshold"
    base = ["pipeline=none", "evaluate=scenes_verifier", "pipeline.steps.statements.pairs=2", "data.limit=12"]
    words = [*base, f"objective={best}", f"{threshold}=interval(0,1)", "hydra.sweep.dir=sweep"]
    optuna = ["direction=maximize", "n_trials=20", "sampler.seed=1"]
    assert command("-m", *words, "hydra/sweeper=optuna", *(f"hydra.sweeper.{word}" for word in optuna)) == 0
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())

    # Every threshold lies between two of the probabilities, so the best of all is known.
    answers = [each for row in captions("sweep/0") for each in row["verifier_answers"]]

    def balanced_accuracy(at: float) -> float:
        right = {True: [], False: []}
        for each in answers:
            right[each["label"]].append((each["p_yes"] >= at) == each["label"])
        return sum(sum(each) / len(each) for each in right.values()) / 2

    values = [balanced_accuracy(at) for at in {0.0, 1.0, *(each["p_yes"] for each in answers)}]
    assert max(values) > min(values) + 0.2
    assert found["best_value"] == pytest.approx(max(values))
    assert balanced_accuracy(found["best_params"][threshold]) == pytest.approx(max(values))
    requests = [each["requests"] for each in summaries(tmp_path / "sweep")]
    assert sum(each["total"] > each["reused"] for each in requests) == 1  # all trials but the first were free
    marked = [line for line in table(tmp_path / "sweep") if line[f"{best} best"] == "True"]
    assert str(found["best_params"][threshold]) in {line[threshold] for line in marked}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package"),
    [("joblib", "joblib"), ("submitit_local", "submitit")],
    ids=["joblib", "submitit"],
)
def test_jobs_can_run_in_other_processes(tmp_path: Path, launcher: str, package: str):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    if find_spec(f"hydra_plugins.hydra_{package}_launcher") is None:
        pytest.skip('needs pip install "scalecap[sweeps]"')
    words = [f"hydra/launcher={launcher}", f"{THRESHOLD}=0.3,2", "data.limit=1", "hydra.sweep.dir=sweep"]
    done = python("-m", "scalecap", "-m", *words, "progress=false", "cache.dir=cache")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    first, second = table(tmp_path / "sweep")
    assert (first["status"], first["rows done"], second["status"]) == ("finished", "1", "failed")
    assert "expected a probability between 0 and 1, got 2.0" in second["reason"]
    command = summaries(tmp_path / "sweep")[0]["command"]
    assert command.startswith("python -m scalecap ")
    assert f"{THRESHOLD}=0.3" in command
