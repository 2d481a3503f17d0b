"""When a run stops before all its rows are done."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from scalecap import advice
from scalecap.asking import Counts
from scalecap.engines.loop import LoopThread
from scalecap.pipeline import Pipeline
from scalecap.settings import RoleSettings, Settings
from scalecap.spending import limit_reached, spent

log = logging.getLogger(__name__)

LOOK = 20
"""Rows that must end before a share in `max_failures` applies."""


class StopRules:
    """`max_failures`, `max_requests`, `max_tokens`, `max_cost`, and checks that are mostly unanswered."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, roles: Mapping[str, RoleSettings], counts: Counts
    ) -> None:
        self._settings, self._roles, self._counts = settings, roles, counts
        self._asking = {step.name: step.role for step in pipeline.steps if step.role}

    @property
    def cost(self) -> float | None:
        """What the run has cost so far; None without prices."""
        return spent(self._counts, self._asking, self._roles)

    @property
    def whole_cost(self) -> float | None:
        """What it had cost if no reply had come from the cache."""
        return spent(self._counts, self._asking, self._roles, reused=True)

    def reason(self, *, failed: int, done: int) -> str:
        """Why the run is to stop now, with the fix; empty when it goes on."""
        settings = self._settings
        if _too_many(settings.max_failures, failed, done):
            return f"{failed} of the first {failed + done} rows failed (max_failures={settings.max_failures})"
        if settings.min_mass and (step := self._counts.unreadable):
            count = self._counts.steps[step]
            return advice.unreadable(step, self._asking[step], count, settings.min_mass)
        return limit_reached(settings, self._counts, self.cost)


def _too_many(most: str | None, failed: int, done: int) -> bool:
    """Whether `max_failures` is reached: a count of rows, or a share of those that ended."""
    if most is None:
        return False
    if most.endswith("%"):
        ended = failed + done
        return ended >= LOOK and failed >= float(most[:-1]) / 100 * ended
    return failed >= int(most)


@contextmanager
def signals(loop: LoopThread, stop: asyncio.Event, on_signal: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`, the second ends the block at once."""
    task = asyncio.current_task()
    asked_to_stop = False

    def handle() -> None:
        nonlocal asked_to_stop
        if asked_to_stop and task is not None:
            log.warning("stopping at once")
            task.cancel()
            return
        asked_to_stop = True
        stop.set()
        on_signal()

    try:
        with loop.signals_to(handle):
            yield
    except asyncio.CancelledError:
        if not asked_to_stop or task is None:
            raise
        task.uncancel()
