"""`runner=ray`: rows go to the least busy actor, and a run survives the death of actors and nodes."""

import asyncio
import json
import os
import pickle  # noqa: TID251 - rows are sent to other processes so
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from image_files import an_image, encoded
from PIL import Image as Pillow
from processes import below, command
from runs import Compose

from scalecap.config.settings import CONF
from scalecap.data.images import open_image, read_image
from scalecap.engines.base import EngineDead, EngineError
from scalecap.engines.scripted import Scripted
from scalecap.engines.settings import EngineSettings
from scalecap.interpreter.dispatch import RunUsage, StepUsage
from scalecap.interpreter.pipeline import Finished, stream
from scalecap.rows import Row
from scalecap.run import cluster
from scalecap.run.cluster import Actor, Cluster
from scalecap.runner import RunError, run


class Handle:
    """An actor as Ray hands it out: `actor.take.remote(row)` can be awaited."""

    def __init__(self, error: Exception | None = None) -> None:
        self.take = SimpleNamespace(remote=self._take)
        self.open = SimpleNamespace(remote=self._open)
        self.error, self.back = error, True
        self.had: list[int] = []

    async def _open(self) -> None:
        if self.error and not self.back:
            raise self.error

    async def _take(self, row: Row) -> tuple[Finished, RunUsage, int]:
        self.had.append(row.index)
        if self.error:
            raise self.error
        counts = RunUsage()
        counts.steps["first"] = StepUsage(requests=2)
        away = Row(row.index, row.columns, lambda: None)
        return Finished(away, {"a": row.index}, None, {}), counts, 4


def raised(error: Exception) -> Exception:
    """What an actor's caller gets when the actor raises this."""
    errors = pytest.importorskip("ray.exceptions", reason='needs pip install "scalecap[ray]"')
    found: Exception = errors.RayTaskError("take", "Traceback …", error).as_instanceof_cause()
    return found


def row(index: int) -> Row:
    return Row(index, {"image": "a.png"}, lambda: None)


async def test_rows_go_to_the_least_busy_actor_and_counts_add_up(compose: Compose):
    actors, counts = [Handle(), Handle()], RunUsage()
    made = Cluster(actors, [4, 2], compose(), counts)
    assert made.rows() == 6
    given = row(0)
    finished = await made.take(given)
    assert finished.row is given  # its image can still be opened here
    assert finished.columns == {"image": "a.png", "a": 0}
    made._open = [2, 0]
    await made.take(row(1))
    assert [each.had for each in actors] == [[0], [1]]
    assert made.rows() == 8  # the second has reported that it takes four
    assert counts.total.requests == 4
    assert Cluster(actors, [4, 2], replace(compose(), rows_in_flight=3), counts).rows() == 6


async def test_an_actor_sends_back_what_it_found_and_not_the_image(
    compose: Compose, opened: list[Any], tmp_path: Path
):
    actor = Actor(compose("cache=off"), {"image": "any"}, str(tmp_path))
    models, rows = await actor.open()
    assert (models["vlm"], rows) == ("scripted", 32)
    cell = {"bytes": encoded(Pillow.effect_noise((300, 300), 90)), "path": "a.png"}
    columns = {"image": None, "text": "long " * 2000}
    given = Row(0, columns, partial(open_image, cell), read_image=partial(read_image, cell))
    finished, counts, _ = await actor.take(given)
    assert finished.columns["final_caption"] == "A dog, brown."
    assert counts.total.requests == 9
    assert len(opened) == 1
    assert len(pickle.dumps(finished)) < 5_000 < len(pickle.dumps(given))


async def test_an_actor_whose_machine_lacks_a_library_says_so(
    compose: Compose, opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = compose("cache=off", "evaluate=reference", "pipeline.steps.reference.references=truth")
    actor = Actor(settings, {"image": "any", "truth": "any"}, str(tmp_path))
    monkeypatch.setattr("scalecap.interpreter.step.find_spec", lambda module: None)
    with pytest.raises(EngineError, match=r"^on \S+: reference: reference needs the module sacrebleu: pip"):
        await actor.open()
    assert opened == []


async def test_a_dead_engine_ends_the_run_and_a_row_that_kills_its_actors_fails(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
):
    errors = pytest.importorskip("ray.exceptions", reason='needs pip install "scalecap[ray]"')
    with pytest.raises(EngineDead, match="no memory"):
        await Cluster([Handle(raised(EngineError("no memory")))], [1], compose(), RunUsage()).take(row(0))
    monkeypatch.setattr(cluster, "RECONNECT_SECONDS", 0.0)
    dying = Cluster([Handle(errors.RayActorError())], [1], compose(), RunUsage())
    finished = await dying.take(row(0))
    assert finished.error
    assert finished.error["kind"] == "actor_died"
    assert dying._actors[0].had == [0] * cluster.MAX_ACTOR_DEATHS


@pytest.mark.usefixtures("opened")
async def test_the_engine_of_an_actor_dies(compose: Compose, engines: dict[str, Scripted], tmp_path: Path):
    def dies(request: Any) -> str:
        raise EngineDead("gone")

    engines["vlm"] = Scripted(dies)
    actor = Actor(compose("cache=off"), {"image": "any"}, str(tmp_path))
    given = Row(0, {"image": None}, partial(open_image, {"bytes": an_image(), "path": "a.png"}))
    with pytest.raises(EngineDead, match=r"^gone$") as dead:
        await actor.take(given)
    with pytest.raises(EngineDead, match=r"^gone$"):
        await Cluster([Handle(raised(dead.value))], [1], compose(), RunUsage()).take(given)


async def test_an_actor_that_is_away_gets_no_rows_until_it_is_back(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
):
    errors = pytest.importorskip("ray.exceptions", reason='needs pip install "scalecap[ray]"')
    monkeypatch.setattr(cluster, "RECONNECT_SECONDS", 0.0)
    dead, alive = Handle(errors.RayActorError()), Handle()
    dead.back = False
    made = Cluster([dead, alive], [4, 4], compose(), RunUsage())
    for index in range(3):
        assert (await made.take(row(index))).error is None
    assert (dead.had, alive.had, made.rows()) == ([0], [0, 1, 2], 4)
    dead.back, dead.error = True, None
    await asyncio.wait_for(made.changed.wait(), 60)
    assert made.rows() == 8

    lame, well = Handle(errors.RayActorError()), Handle()

    async def no_memory() -> None:
        raise raised(EngineError("no memory"))

    lame.open = SimpleNamespace(remote=no_memory)
    made = Cluster([lame, well], [4, 4], compose(), RunUsage())
    for index in range(2):
        assert (await made.take(row(index))).error is None
    await asyncio.sleep(0.01)
    assert (await made.take(row(2))).error is None
    well.error = errors.RayActorError()
    well.open = lame.open
    with pytest.raises(EngineDead, match=r"^no memory$"):
        await made.take(row(3))

    alone = Cluster([dead], [4], replace(compose(), engine=EngineSettings(timeout=0.05)), RunUsage())
    dead.back, dead.error = False, errors.RayActorError()
    with pytest.raises(EngineDead, match="no actor has been alive"):
        await alone.take(row(0))
    await alone.close()


async def test_a_run_ends_when_its_only_actor_dies_with_a_row_and_cannot_return(
    compose: Compose, monkeypatch: pytest.MonkeyPatch
):
    errors = pytest.importorskip("ray.exceptions", reason='needs pip install "scalecap[ray]"')
    monkeypatch.setattr(cluster, "RECONNECT_SECONDS", 0.0)
    opened = iter([None] * (cluster.MAX_ACTOR_DEATHS - 1))

    async def open_again() -> None:
        if next(opened, "no memory") == "no memory":
            raise raised(EngineError("no memory"))

    handle, done = Handle(errors.RayActorError()), list[Finished]()
    handle.open = SimpleNamespace(remote=open_again)
    made = Cluster([handle], [1], compose(), RunUsage())
    work = stream([row(0), row(1)], made.take, in_flight=made.rows, on_row=done.append, changed=made.changed)
    with pytest.raises(EngineDead, match=r"^no memory$"):
        await asyncio.wait_for(work, 60)
    assert [each.error and each.error["kind"] for each in done] == ["actor_died"]


def test_without_ray_the_message_says_what_to_install(compose: Compose, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(cluster, "import_module", missing)
    with pytest.raises(RunError, match=r"pip install .scalecap\[ray\]"):
        run(compose("runner=ray", "data.limit=1"))


def test_a_missing_cluster_gives_one_message(compose: Compose):
    pytest.importorskip("ray", reason='needs pip install "scalecap[ray]"')
    with pytest.raises(RunError, match=r"no Ray cluster at runner\.address=127\.0\.0\.1:1: "):
        run(compose("runner=ray", "data.limit=1", "runner.address=127.0.0.1:1"))


@pytest.mark.slow
def test_an_engine_that_cannot_be_opened_gives_one_message(compose: Compose):
    pytest.importorskip("ray", reason='needs pip install "scalecap[ray]"')
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    with pytest.raises(RunError) as error:
        run(
            compose(
                "runner=ray",
                "data.limit=1",
                "model=own",
                "model.vlm.name=/no/such/model",
                "engine=transformers",
            )
        )
    assert str(error.value).startswith("no folder /no/such/model")
    assert "Traceback" not in str(error.value)


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes, each in processes of its own, on this machine."""
    utils = pytest.importorskip("ray.cluster_utils", reason='needs pip install "scalecap[ray]"')
    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    made = utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    made.other = lambda: made.add_node(**node)
    yield made
    made.shutdown()


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    common = ["data.count=16", "data.seed=3", "engine=transformers", "cache=off", "report=false"]
    return subprocess.Popen(
        [sys.executable, "-m", "scalecap", f"output={folder}", *common, *words],
        env=os.environ | {"PYTHONPATH": str(CONF.parent), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(folder: Path) -> int:
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b'{"index":') if journal.exists() else 0


def wait(process: subprocess.Popen[str], folder: Path, rows: int) -> None:
    while done(folder) < rows:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def actors() -> list[int]:
    return [each for each in below(os.getpid()) if command(each).startswith("ray::Actor")]


@pytest.mark.slow
def test_a_run_is_the_same_when_actors_and_nodes_die_and_come_back(nodes: Any, tmp_path: Path):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    alone = begin(tmp_path / "alone")
    away = nodes.other()
    # Started in one process, it is resumed with two on the cluster.
    first = begin(tmp_path / "run", "data.limit=3")
    for process in (alone, first):
        assert process.wait() == 0, process.communicate()[0]
    process = begin(tmp_path / "run", "runner=ray", "runner.actors=2", f"runner.address={nodes.address}")
    wait(process, tmp_path / "run", 6)
    assert len(actors()) == 2
    os.kill(actors()[0], signal.SIGKILL)
    wait(process, tmp_path / "run", 10)
    nodes.remove_node(away, allow_graceful=False)
    wait(process, tmp_path / "run", 14)
    nodes.other()
    out = process.communicate()[0]
    assert process.returncode == 0, out
    assert "(3 from an earlier run)" in out
    expected, written = (tmp_path / name / "captions.jsonl" for name in ("alone", "run"))
    assert expected.read_bytes() == written.read_bytes()
    indices = [
        json.loads(line)["index"]
        for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
        if line.startswith('{"index":')
    ]
    assert sorted(indices) == list(range(16))
