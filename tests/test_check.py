"""`check=true` finds what a run would stop for, and says what it did not look at; so does the run itself."""

import fcntl
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from runs import Command, Compose
from server import Server

from scalecap.config.settings import Settings
from scalecap.engines import weights
from scalecap.engines.scripted import Scripted
from scalecap.interpreter import step
from scalecap.runner import RunError, plan, run


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a module look as if it were not installed."""

    def without(name: str) -> None:
        find = step.find_spec
        monkeypatch.setattr(step, "find_spec", lambda module: None if module == name else find(module))

    return without


@pytest.fixture
def judged(compose: Compose, tmp_path: Path) -> Compose:
    """Settings of a run that scores the captions of a file."""

    def judged(*words: str) -> Settings:
        (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "alt": "A dog.", "references": "A cat."}\n')
        given = ("pipeline=none", "data=jsonl", f"data.path={tmp_path}/rows.jsonl", "evaluate.caption=alt")
        return compose(*given, *words)

    return judged


def test_a_metrics_library_that_is_missing(judged: Compose, without: Callable[[str], None]):
    without("sacrebleu")
    message = r'- reference: reference needs the module sacrebleu: pip install "scalecap\[metrics\]"'
    for work in (plan, run):
        with pytest.raises(RunError, match=message):
            work(judged("evaluate=reference"))
    without("transformers")
    with pytest.raises(RunError, match=r"clipscore needs the module transformers"):
        plan(judged("evaluate=clipscore"))


def test_a_metrics_weights_that_are_missing(judged: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    if find_spec("transformers") is None:
        pytest.skip('needs pip install "scalecap[cpu]"')
    (tmp_path / "empty").mkdir()
    for name, message in (
        (f"{tmp_path}/nowhere", r"- clipscore: weights: no folder .*nowhere"),
        (f"{tmp_path}/empty", r"- clipscore: weights: .*empty holds no model: it has no config\.json"),
        ("some/model", r"- clipscore: weights: some/model is neither a folder here .* hub can't be reached"),
    ):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for work in (plan, run):
            with pytest.raises(RunError, match=message):
                work(judged("evaluate=clipscore", f"pipeline.steps.clipscore.weights={name}"))


def test_a_stage_from_outside_declares_what_it_needs(
    typed: Command, opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    (tmp_path / "needing.py").write_text(
        "from scalecap.stages import stage\n"
        '@stage(requires={"no_such_module": "no-such-package"})\n'
        "def shout(text: str) -> str:\n"
        "    return text.upper()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("pipeline.imports=[needing]", "pipeline.steps.loud={stage: needing/shout, text: final_caption}")
    for more in ("check=true", "output=out"):
        assert typed(*words, more) == 1
        error = capsys.readouterr().err
        assert 'loud: needing/shout needs the module no_such_module: pip install "no-such-package"' in error
    assert opened == []


def test_a_folder_that_holds_another_run(compose: Compose, engines: dict[str, Scripted]):
    words = ("data.limit=1", "pipeline=direct", "progress=false", "engine=transformers")
    run(compose(*words), engines=engines)
    assert "Estimate: all 1 rows, extrapolated from 1" in plan(compose(*words))
    for work in (plan, run):
        with pytest.raises(RunError, match=r"holds a run with another config \(seed: was 0, is 1\)"):
            work(compose(*words, "seed=1"))
    assert "Configuration OK" in plan(compose(*words, "seed=1", "resume=force"))
    journal = compose(*words).output + "/journal.jsonl"
    with Path(journal).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another run is writing to"):
            plan(compose(*words))
    Path(journal).write_text("")  # of a run that was killed as it began
    assert "Configuration OK" in plan(compose(*words, "seed=1"))


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')
    server = Server()
    yield server
    server.stop()


def test_the_models_of_a_server_are_checked(
    compose: Compose, server: Server, monkeypatch: pytest.MonkeyPatch
):
    def checked(name: str = "m") -> str:
        own = ("model=own", f"model.vlm.name={name}", "engine=openai", f"engine.base_url={server.url}")
        return plan(compose(*own, "engine.timeout=600", "data.limit=1"))

    assert "Configuration OK. Not checked: that the server answers; " in checked()
    assert server.requests == []
    with pytest.raises(RunError, match=r"has no model other: set model\.vlm\.name to one of m"):
        checked("other")
    server.models = (401, {"error": {"message": "no"}})
    with pytest.raises(RunError, match="refuses the key: set the environment variable OPENAI_API_KEY"):
        checked()
    server.models = (404, {})
    assert "Not checked: whether the server has a model m, since it lists none; " in checked()
    monkeypatch.setattr("scalecap.engines.openai._PREFLIGHT_TIMEOUT", 0.2)
    server.models = (200, "hang")
    with pytest.raises(RunError, match="no server answers at"):
        checked()
    server.stop()
    with pytest.raises(RunError, match="no server answers at"):
        checked()
    server.start()


def test_models_by_folder_and_by_name(compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ("model=own", "engine=transformers", "data.limit=1")
    if find_spec("transformers") is None:
        pytest.skip('needs pip install "scalecap[cpu]"')
    shown = plan(compose(*words, "model.vlm.name=some/model"))
    assert (
        "Not checked: whether the hub, which can't be reached, has some/model; that the models load" in shown
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"holds no model: it has no config\.json"):
        plan(compose(*words, f"model.vlm.name={tmp_path}/empty"))

    def absent(_: Any) -> None:
        raise weights.ModelError("no such model on the hub")

    monkeypatch.setattr(weights, "preflight", absent)
    with pytest.raises(RunError, match="no such model on the hub"):
        plan(compose(*words, "model.vlm.name=some/model"))


def test_a_check_says_what_it_did_not_check(compose: Compose, judged: Compose):
    assert plan(judged("evaluate=density")).endswith("\nConfiguration OK.")
    assert plan(compose()).endswith(
        "\nConfiguration OK. Not checked: that the models load and fit memory;"
        " that prompts fit the context of the models; that images can be opened."
    )
    assert "the resources of the cluster's machines" in plan(compose("runner=ray"))


def test_the_version_is_that_of_scalecap(command: Command, capsys: Any):
    assert command("--version") == 0
    assert capsys.readouterr().out == "scalecap 0.2.0\n"
