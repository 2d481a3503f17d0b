"""Errors in an engine, a source or a sink of another package, and how the run reports them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import captions

from scalecap import plugins
from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.sources import RowSource, open_source
from scalecap.engines import open_engine
from scalecap.engines.base import EngineError
from scalecap.engines.scripted import Scripted
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.runner import RunError, run

MODEL = ModelSettings(name="m")
Declare = Callable[..., None]


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Declare:
    """Has the package `acme` declare a `thing` of a kind, or what can't be imported."""

    def declare(kind: str, thing: Any = None) -> None:
        loads: Any = EntryPoint("thing", "acme.missing:thing", f"scalecap.{kind}")
        if thing is not None:
            loads = SimpleNamespace(name="thing", module="acme.things", load=lambda: thing)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [loads] * (group == f"scalecap.{kind}"))

    return declare


async def test_an_engine_that_cannot_be_imported(declare: Declare):
    declare("engines")
    with pytest.raises(EngineError, match=r"engine=acme/thing: .* loaded: ModuleNotFoundError"):
        await open_engine(MODEL, EngineSettings(name="acme/thing"))


async def test_an_engine_that_needs_a_module(declare: Declare):
    async def opens(*_: Any) -> Any:
        import no_such_module  # noqa: F401

    declare("engines", opens)
    with pytest.raises(EngineError, match=r"engine=acme/thing needs the module no_such_module$"):
        await open_engine(MODEL, EngineSettings(name="acme/thing"))


async def test_an_engine_whose_identity_could_be_that_of_another(declare: Declare):
    async def opens(*given: Any) -> Any:
        return Scripted([], identity="transformers m@1 float32")

    declare("engines", opens)
    with pytest.raises(EngineError, match="expected an identity that begins with its name, got 'transf"):
        await open_engine(MODEL, EngineSettings(name="acme/thing"))


async def test_an_engine_is_given_its_model_its_settings_and_the_models_beside(declare: Declare):
    given: list[Any] = []

    async def opens(*arguments: Any) -> Any:
        given.extend(arguments)
        return Scripted([], identity="acme/thing m")

    declare("engines", opens)
    settings = EngineSettings(name="acme/thing", args={"a": 1}, extra_body={"b": 2})
    await open_engine(MODEL, settings, [ModelSettings(name="other")])
    assert given == [MODEL, settings, [ModelSettings(name="other")]]


def test_a_source_that_cannot_be_imported(declare: Declare):
    declare("sources")
    with pytest.raises(DataError, match=r"data\.source=acme/thing: .* loaded: ModuleNotFoundError"):
        open_source(DataSettings(source="acme/thing"))


def test_a_source_of_its_own_kind_is_limited_and_in_shards(declare: Declare):
    rows = open_source(DataSettings(source="scenes"))

    class Reversed:
        columns, total = rows.columns, 24

        def __iter__(self) -> Iterator[Any]:
            return iter(rows)

        def unfinished(self, finished: Any) -> Iterator[Any]:
            return iter(self)

    declare("sources", lambda data: Reversed())
    opened = open_source(DataSettings(source="acme/thing", limit=9, shard="1/4"))
    assert (opened.total, [row.index for row in opened]) == (2, [1, 5])
    assert [row.index for row in opened.unfinished(lambda *_, **__: 0)] == [1, 5]


def test_a_source_that_fails_is_named_and_costs_no_row(
    declare: Declare, compose: Any, rows: Any, engines: Any, tmp_path: Path
):
    rows(2)
    whole = open_source(DataSettings(source="jsonl", path=str(tmp_path / "rows.jsonl")))
    fails = [True]

    def breaks() -> Iterator[Any]:
        for row in whole:
            yield row
            if fails:
                raise OSError("the line is dead")

    def opens(data: Any) -> Any:
        if not data.path:
            raise KeyError("path")
        return RowSource(whole.columns, 2, breaks)

    declare("sources", opens)
    words = ("data=jsonl", "data.source=acme/thing", "model=own", "model.vlm.name=m", "pipeline=seed")
    with pytest.raises(RunError, match=r"^data\.source=acme/thing: KeyError: 'path'$"):
        run(compose(*words), engines=engines)
    stopped = run(compose(*words, "data.path=x"), engines=engines)
    assert (stopped.status, stopped.done) == ("stopped", 1)
    assert stopped.reason == "data.source=acme/thing: OSError: the line is dead"
    fails.clear()
    done = run(compose(*words, "data.path=x"), engines=engines)
    assert (done.status, done.done, done.reused) == ("finished", 2, 1)


def test_a_sink_that_cannot_be_imported_stops_the_check(declare: Declare, compose: Any, rows: Any):
    declare("sinks")
    with pytest.raises(RunError, match=r"write\.format: 'acme/thing' can't be loaded: ModuleNotFound"):
        run(compose("data=jsonl", rows(1), "write.format=[acme/thing]"), engines={})


@pytest.mark.parametrize("where", ["open", "add", "close"])
def test_a_sink_that_fails_costs_no_row(
    declare: Declare, compose: Any, rows: Any, engines: Any, tmp_path: Path, where: str
):
    broken = [where]

    def fail(at: str) -> None:
        if at in broken:
            raise KeyError(at)

    @contextmanager
    def opens(folder: Path, settings: Any) -> Iterator[Any]:
        fail("open")
        (folder / "rows.txt").write_text("")
        yield SimpleNamespace(add=lambda group: fail("add"))
        fail("close")

    declare("sinks", opens)
    words = ("data=jsonl", rows(2), "report=false", "write.format=[parquet,acme/thing]")
    with pytest.raises(RunError, match=f"write.format=acme/thing: KeyError: '{where}'. All finished rows"):
        run(compose(*words), engines=engines)
    assert len(captions()) == 2
    assert not (tmp_path / "run" / "acme-thing").exists()

    broken.clear()
    again = run(compose(*words), engines=engines)
    assert (again.reused, again.usage.total.requests) == (2, 0)
    assert (tmp_path / "run" / "acme-thing" / "rows.txt").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]["done"] == 2
