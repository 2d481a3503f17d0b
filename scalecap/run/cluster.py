"""Runs the pipeline in actors on a Ray cluster (`runner=ray`), each with its own engine.

The driver process reads the rows, sends each to the least busy actor, and keeps the journal: resume,
failures, files and the summary are the same as without a cluster. Ray restarts an actor that died, there or
on another machine; meanwhile the others take its rows.
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
from scalecap.interpreter.pipeline import Finished, image_pool
from scalecap.rows import Row
from scalecap.run.check import build_pipeline

log = logging.getLogger(__name__)

MAX_ACTOR_DEATHS = 4
"""Actors that may die with a row before the row fails: it is probably what kills them."""
RECONNECT_SECONDS = 1.0
"""Seconds between attempts to reach an actor that died."""


class Actor:
    """The pipeline in its own process, with an engine that is opened there."""

    def __init__(self, settings: Settings, columns: Mapping[str, str] | None, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)  # relative paths are resolved as in the driver
        if folder not in sys.path:
            sys.path.insert(0, folder)
        self._settings = settings
        self._pipeline = build_pipeline(settings, columns)
        self._cache = Cache(Path(settings.cache.dir).expanduser()) if settings.cache.enabled else None
        self._images = image_pool()
        self._opening: asyncio.Task[None] | None = None

    async def open(self) -> tuple[dict[str, str], int]:
        """Loads the models, once. Returns engine identities by role, and the rows to have in flight here."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await self._opening
        identities = {role: engine.identity for role, engine in self._dispatcher.engines.items()}
        return identities, self._dispatcher.max_rows()

    async def _open(self) -> None:
        settings = self._settings
        if missing := self._pipeline.missing_requirements():
            raise EngineError(f"on {socket.gethostname()}: {'; '.join(missing)}")
        roles = settings.by_role(self._pipeline.roles)
        engines = await Engines().by_role(roles)
        self._dispatcher = Dispatcher(
            engines, self._cache, settings.sampling, settings.seed, RunUsage(), settings.min_mass
        )

    async def take(self, row: Row) -> tuple[Finished, RunUsage, int]:
        """Captions one row. Returns it, the usage since the last call, and the rows to have in flight."""
        await self.open()
        finished = await self._pipeline.run_row(row, self._dispatcher, self._images)
        usage, self._dispatcher.usage = self._dispatcher.usage, RunUsage()
        # The driver has the row; its image is not sent back.
        stub = Row(row.index, {}, _no_image)
        written = {name: value for name, value in finished.columns.items() if name in self._pipeline.writers}
        return replace(finished, row=stub, columns=written), usage, self._dispatcher.max_rows()


def _no_image() -> Any:
    raise AssertionError("the image of a finished row stays in its actor")


class Cluster:
    """The actors, as the driver sees them."""

    def __init__(
        self, actors: Sequence[Any], rows: Sequence[int], settings: Settings, usage: RunUsage
    ) -> None:
        self._actors = actors
        self._rows = list(rows)
        self._open = [0] * len(actors)
        self._away: dict[int, asyncio.Task[None]] = {}
        """By actor that died: the task that waits for its return, done if it has no usable engine then."""
        self._engine_error = ""
        """Why the last actor that returned can't be used."""
        self._settings = settings
        self._usage = usage
        self.changed = asyncio.Event()
        """Set when `rows()` may have changed."""

    def rows(self) -> int:
        """Rows in flight that keep all living actors busy; at least one, to wait for an actor's return."""
        alive = [rows for index, rows in enumerate(self._rows) if index not in self._away]
        return max(1, sum(self._settings.rows_in_flight or rows for rows in alive))

    async def take(self, row: Row) -> Finished:
        """Captions a row in the least busy actor, and in another one if that dies. Raises EngineDead."""
        actor_died: Any = import_module("ray.exceptions").RayActorError
        for _ in range(MAX_ACTOR_DEATHS):
            index = await self._least_busy()
            self._open[index] += 1
            try:
                finished, usage, self._rows[index] = await self._actors[index].take.remote(row)
            except EngineError as error:
                raise EngineDead(_message(error)) from None
            except actor_died as error:
                reason = str(error)
                self._reconnect(index, actor_died)
            else:
                for step, count in usage.steps.items():
                    self._usage.steps[step] += count
                done: Finished = replace(finished, row=row, columns={**row.columns, **finished.columns})
                return done
            finally:
                self._open[index] -= 1
        message = f"the actor that had the row died {MAX_ACTOR_DEATHS} times: {reason}"
        return Finished(row, dict(row.columns), {"step": None, "kind": "actor_died", "message": message}, {})

    async def _least_busy(self) -> int:
        """Index of an actor. Raises EngineDead when none is alive for `engine.timeout` seconds."""
        while len(self._away) == len(self._actors):
            waiting = [task for task in self._away.values() if not task.done()]
            if not waiting:
                raise EngineDead(self._engine_error)
            seconds = self._settings.engine.timeout
            done, _ = await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                raise EngineDead(f"no actor has been alive for {seconds:g} s (engine.timeout)")
        alive = [index for index in range(len(self._actors)) if index not in self._away]
        return min(alive, key=lambda index: self._open[index] / self._rows[index])

    def _reconnect(self, index: int, actor_died: type[Exception]) -> None:
        """Waits in the background for an actor that Ray restarts."""

        async def reopen() -> None:
            while True:
                await asyncio.sleep(RECONNECT_SECONDS)
                try:
                    await self._actors[index].open.remote()
                except actor_died:
                    continue
                except EngineError as error:
                    self._engine_error = _message(error)
                    log.warning(
                        "actor %d was restarted but can't open its engine: %s", index, self._engine_error
                    )
                    return
                del self._away[index]
                self.changed.set()
                return

        if index not in self._away:
            log.warning("actor %d died: its rows go to others until Ray has restarted it", index)
            self._away[index] = asyncio.create_task(reopen())

    async def close(self) -> None:
        """Stops waiting for actors that died."""
        for task in self._away.values():
            task.cancel()
        await asyncio.gather(*self._away.values(), return_exceptions=True)


@asynccontextmanager
async def open_cluster(
    settings: Settings, columns: Mapping[str, str] | None, usage: RunUsage
) -> AsyncIterator[tuple[Cluster, dict[str, str]]]:
    """The cluster with its actors ready, and the engines' identities by role.

    Raises:
        EngineError: Ray is not installed or not reachable, or the actors can't open their engine.
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
        available = ray.cluster_resources()
        gpus = wanted.gpus_per_actor
        if gpus is None:
            gpus = 1.0 if available.get("GPU") else 0.0
        for name, needed in (("CPU", wanted.actors), ("GPU", wanted.actors * gpus)):
            if available.get(name, 0) < needed:
                log.warning(
                    "the cluster has %g %ss and runner.actors=%d need %g: some actors wait for resources",
                    *(available.get(name, 0), name, wanted.actors, needed),
                )
        make = ray.remote(Actor).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_concurrency=1000, scheduling_strategy="SPREAD"
        )
        actors = [make.remote(settings, columns, os.getcwd()) for _ in range(wanted.actors)]
        try:
            found = await asyncio.gather(*(actor.open.remote() for actor in actors))
        except EngineError as error:
            raise EngineError(_message(error)) from None
        except ray.exceptions.RayActorError as error:
            raise EngineError(f"an actor can't start: {error}") from error
        cluster = Cluster(actors, [rows for _, rows in found], settings, usage)
        try:
            yield cluster, found[0][0]
        finally:
            await cluster.close()
    finally:
        await asyncio.to_thread(ray.shutdown)


def _message(error: Exception) -> str:
    """The message of an actor's error, without the traceback that Ray wraps around it."""
    return str(getattr(error, "cause", None) or error)


def _connect(ray: Any, address: str | None) -> None:
    if found := re.fullmatch(r"([\w.-]+):(\d+)", address or ""):
        # Fails in seconds; Ray itself would retry for minutes.
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    alone = {} if address else {"include_dashboard": False}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **alone)
