"""What it costs one process to have rows done elsewhere: by actors on Ray, or by a list of servers.

    python tests/benchmarks/driver.py [ROWS]

The rows are those of `interpreter.py` (nine requests each). With `runner=ray` this process hands them to 1 to
8 actors, whose engines answer at once; with `engine=openai` it runs their steps itself and sends the requests
to 1 to 8 servers, which answer at once. CPU time is of this process alone, from where its first row begins to
where its last one ends; what a row takes to an actor and back is its pickled size. All share this machine, so
rows a second say what they take of it together, not what a cluster does.
"""

import asyncio
import json
import logging
import pickle  # noqa: TID251 - rows go to actors so, and these are our own
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from client import server
from interpreter import an_image, say

import scalecap.engines
from scalecap.config.compose import from_config
from scalecap.config.settings import CONF, Settings
from scalecap.engines.scripted import Scripted
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.run import cluster
from scalecap.run.check import check
from scalecap.runner import run


async def scripted(*_: Any, **__: Any) -> Scripted:
    return Scripted(say)


def connect(ray: Any, _: str | None) -> None:
    """Ray on this machine alone, with room for all actors."""
    ray.init(num_cpus=8, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)


open_engine = scalecap.engines.open_engine
scalecap.engines.open_engine = scripted  # in an actor too, which imports this module (`pipeline.imports`)
cluster._connect = connect


def settings(folder: Path, *words: str) -> Settings:
    given = [f"data.path={folder / 'rows.jsonl'}", "prompts=seed", "model=own", "model.vlm.name=none"]
    given += ["data=jsonl", "data.allow_urls=true", "cache=off", "progress=false", "report=false"]
    given += ["pipeline.imports=[driver]"]  # this file, in each actor
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return from_config(hydra.compose("config", [*given, *words]))


def measure(rows: int, folder: Path, name: str, *words: str) -> None:
    """One run, from where its first row begins to where its last one ends."""
    clocks: list[tuple[float, float]] = []

    def timed(run_row: Any) -> Any:
        async def timed_run(*arguments: Any) -> Finished:
            if not clocks:
                clocks.append((time.monotonic(), time.process_time()))
            finished: Finished = await run_row(*arguments)
            clocks[1:] = [(time.monotonic(), time.process_time())]
            return finished

        return timed_run

    wanted = settings(folder, f"output={folder / name.replace(' ', '_')}", *words)
    with (
        patch.object(cluster.Cluster, "take", timed(cluster.Cluster.take)),
        patch.object(Pipeline, "run_row", timed(Pipeline.run_row)),
    ):
        assert run(wanted).done == rows
    (begun, cpu), (ended, cpu_ended) = clocks
    print(f"{name:>11} {rows / (ended - begun):7.1f} {1000 * (cpu_ended - cpu) / rows:16.2f}", flush=True)


async def bytes_of_a_row(folder: Path) -> tuple[int, int]:
    """Sent to an actor, and sent back."""
    wanted = settings(folder, f"output={folder / 'out'}")
    source, _ = check(wanted)
    row = next(iter(source))
    actor = cluster.Actor(wanted, source.columns, str(folder))
    await actor.take(row)
    return len(pickle.dumps(row)), len(pickle.dumps(await actor.take(row)))


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps({"id": number, "image": an_image(number)}) + "\n" for number in range(rows)]
        (folder / "rows.jsonl").write_text("".join(lines))
        print(f"{'':>11} {'rows/s':>7} {'driver CPU ms/row':>16}")
        for actors in (1, 2, 4, 8):
            measure(rows, folder, f"{actors} actors", "runner=ray", f"runner.actors={actors}")
        there, back = asyncio.run(bytes_of_a_row(folder))
        scalecap.engines.open_engine = open_engine
        for count in (1, 2, 4, 8):
            with ExitStack() as stack:
                urls = ",".join(stack.enter_context(server()) for _ in range(count))
                words = ("model.vlm.name=m", "engine=openai", f"engine.base_url=[{urls}]")
                measure(rows, folder, f"{count} servers", *words)
        print(f"a row: {there:,} bytes to an actor, {back:,} back")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2000)
