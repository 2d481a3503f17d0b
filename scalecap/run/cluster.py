"""Rows taken through the pipeline by actors on a Ray cluster (`runner=ray`), each with an engine of its own.

The process that was started reads the rows, sends each to the actor with the fewest, and keeps the journal:
what a run is (resume, failures, files, the summary) is the same as without a cluster. Ray starts an actor
that died anew, there or on another machine; meanwhile the others have its rows.
"""

import asyncio
import logging
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from scalecap.config.settings import Settings
from scalecap.engines import Engines
from scalecap.engines.base import EngineDead, EngineError
from scalecap.interpreter.cache import Cache
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Finished, Pipeline, picture_pool
from scalecap.rows import Row

log = logging.getLogger(__name__)

MAX_ACTOR_DEATHS = 4
"""Actors that a row may see die before it counts as what kills them."""
RECONNECT_SECONDS = 1.0
"""Seconds between looks for an actor that died."""


class Actor:
    """The pipeline in a process of its own, with an engine that is opened there."""

    def __init__(self, settings: Settings, columns: Mapping[str, str] | None, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)  # relative paths start where the run was started
        if folder not in sys.path:
            sys.path.insert(0, folder)
        self._settings = settings
        self._pipeline = Pipeline.build(
            settings.pipeline.steps,
            columns,
            imports=settings.pipeline.imports,
            sampling=settings.sampling,
            budget=settings.pipeline.budget,
        )
        self._cache = Cache(Path(settings.cache.dir).expanduser()) if settings.cache.enabled else None
        self._pictures = picture_pool()
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> tuple[dict[str, str], int]:
        """Loads the models, once. By role what answers, and how many rows the actor takes at once."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await self._opening
        return {
            role: engine.identity for role, engine in self._dispatcher.engines.items()
        }, self._dispatcher.rows()

    async def _open(self) -> None:
        settings = self._settings
        if missing := self._pipeline.missing():
            raise EngineError(f"on {socket.gethostname()}: {'; '.join(missing)}")
        roles = settings.by_role(self._pipeline.roles)
        engines = await Engines().by_role(roles)
        self._dispatcher = Dispatcher(
            engines, self._cache, settings.sampling, settings.seed, RunUsage(), settings.min_mass
        )

    async def take(self, row: Row) -> tuple[Finished, RunUsage, int]:
        """One row; with it what was counted since the row before, and how many rows to have here by now."""
        await self.open()
        finished = await self._pipeline.take(row, self._dispatcher, self._pictures)
        counts, self._dispatcher.counts = self._dispatcher.counts, RunUsage()
        # The row is known where it comes from.
        left = Row(row.index, {}, _gone)
        written = {name: value for name, value in finished.columns.items() if name in self._pipeline.writers}
        return replace(finished, row=left, columns=written), counts, self._dispatcher.rows()


def _gone() -> Any:
    raise AssertionError("the row's picture was left with the actor")


class Cluster:
    """The actors, as the run sees them."""

    def __init__(
        self, actors: Sequence[Any], rows: Sequence[int], settings: Settings, usage: RunUsage
    ) -> None:
        self._actors = actors
        self._rows = list(rows)
        self._open = [0] * len(actors)
        self._away: dict[int, asyncio.Task[None]] = {}
        """Actors that died, each with what waits for it to come back; done where it is no use any more."""
        self._useless = ""
        """Why one that came back can't be used."""
        self._settings = settings
        self._usage = usage
        self.changed = asyncio.Event()
        """Set when `rows()` may be another."""

    def rows(self) -> int:
        """Rows in flight that keep busy all actors that are there."""
        there = [rows for at, rows in enumerate(self._rows) if at not in self._away]
        return sum(self._settings.rows_in_flight or rows for rows in there)

    async def take(self, row: Row) -> Finished:
        """One row through the actor that has the fewest, and through another if that one dies."""
        died: Any = import_module("ray.exceptions").RayActorError
        for _ in range(MAX_ACTOR_DEATHS):
            at = await self._freest()
            self._open[at] += 1
            try:
                finished, counts, self._rows[at] = await self._actors[at].take.remote(row)
            except EngineError as error:
                raise EngineDead(_said(error)) from None
            except died as error:
                reason = str(error)
                self._wait_for(at, died)
            else:
                for step, count in counts.steps.items():
                    self._usage.steps[step] += count
                done: Finished = replace(finished, row=row, columns={**row.columns, **finished.columns})
                return done
            finally:
                self._open[at] -= 1
        message = f"the process that had the row died {MAX_ACTOR_DEATHS} times: {reason}"
        return Finished(row, dict(row.columns), {"step": None, "kind": "actor_died", "message": message}, {})

    async def _freest(self) -> int:
        """EngineDead when all actors stay away for `engine.timeout` seconds."""
        while len(self._away) == len(self._actors):
            waiting = [task for task in self._away.values() if not task.done()]
            if not waiting:
                raise EngineDead(self._useless)
            seconds = self._settings.engine.timeout
            ended, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not ended:
                raise EngineDead(f"all actors have been away for {seconds:g} s (engine.timeout)")
        there = [at for at in range(len(self._actors)) if at not in self._away]
        return min(there, key=lambda at: self._open[at] / self._rows[at])

    def _wait_for(self, at: int, died: type[Exception]) -> None:
        async def back() -> None:
            while True:
                await asyncio.sleep(RECONNECT_SECONDS)
                try:
                    await self._actors[at].open.remote()
                except died:
                    continue
                except EngineError as error:
                    self._useless = _said(error)
                    log.warning("actor %d is back and can't open its engine: %s", at, self._useless)
                    return
                del self._away[at]
                self.changed.set()
                return

        if at not in self._away:
            log.warning("actor %d died; its rows go to others, and it is waited for", at)
            self._away[at] = asyncio.create_task(back())

    async def close(self) -> None:
        """Waits for none any more."""
        for task in self._away.values():
            task.cancel()
        await asyncio.gather(*self._away.values(), return_exceptions=True)


@asynccontextmanager
async def open_cluster(
    settings: Settings, columns: Mapping[str, str] | None, usage: RunUsage
) -> AsyncIterator[tuple[Cluster, dict[str, str]]]:
    """The cluster with its actors ready, and by role what answers.

    Raises EngineError when Ray is not there, or the actors can't open their engine.
    """
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError as error:
        raise EngineError('runner=ray needs Ray: pip install "scalecap[ray]"') from error
    wanted = settings.runner
    try:
        await asyncio.to_thread(_connect, ray, wanted.address)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"no Ray cluster at runner.address={wanted.address}" if wanted.address else "Ray can't start"
        raise EngineError(f"{what}: {error}") from error
    try:
        there = ray.cluster_resources()
        gpus = wanted.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if there.get("GPU") else 0.0
        for name, needed in (("CPU", wanted.actors), ("GPU", wanted.actors * gpus)):
            if there.get(name, 0) < needed:
                log.warning(
                    "the cluster has %g %ss and runner.actors=%d need %g: some wait until it has more",
                    *(there.get(name, 0), name, wanted.actors, needed),
                )
        make = ray.remote(Actor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=-1,
            max_concurrency=1000,
            scheduling_strategy="SPREAD",
        )
        actors = [make.remote(settings, columns, os.getcwd()) for _ in range(wanted.actors)]
        try:
            found = await asyncio.gather(*(actor.open.remote() for actor in actors))
        except EngineError as error:
            raise EngineError(_said(error)) from None
        except ray.exceptions.RayActorError as error:
            raise EngineError(f"an actor can't start: {error}") from error
        cluster = Cluster(actors, [rows for _, rows in found], settings, usage)
        try:
            yield cluster, found[0][0]
        finally:
            await cluster.close()
    finally:
        await asyncio.to_thread(ray.shutdown)


def _said(error: Exception) -> str:
    """What an actor raised, without the traceback that Ray puts around it."""
    return str(getattr(error, "cause", None) or error)


def _connect(ray: Any, address: str | None) -> None:
    if found := re.fullmatch(r"([\w.-]+):(\d+)", address or ""):
        # Ray itself would try for minutes.
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    alone = {} if address else {"include_dashboard": False}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
