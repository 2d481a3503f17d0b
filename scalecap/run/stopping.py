"""When a run stops before all its rows are done."""

import asyncio
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

from scalecap.config.settings import Settings
from scalecap.engines.loop import LoopThread
from scalecap.engines.settings import RoleSettings
from scalecap.interpreter.dispatch import CHOICES, RunUsage
from scalecap.interpreter.pipeline import Pipeline
from scalecap.run import advice
from scalecap.run.costs import limit_reached, token_cost

log = logging.getLogger(__name__)

MIN_ROWS_FOR_SHARE = 20
"""Rows that must end before a share in `max_failures` applies."""


class Stop(NamedTuple):
    """Why a run stops before its end, and what to do."""

    reason: str
    then: str = ""
    """What to do in place of the same command; empty where that goes on."""
    overrides: Mapping[str, str] = MappingProxyType({})
    """With these the same command does."""

    def next(self, command: str) -> list[str]:
        """Lines that tell what to do next, if it is not the command that goes on."""
        words = [word for word in shlex.split(command) if word.partition("=")[0] not in self.overrides]
        overrides = [f"{key}={value}" for key, value in self.overrides.items()]
        if not overrides:
            return [f"Next: {self.then}."] if self.then else []
        return [f"Next: {self.then}:", f"  {shlex.join([*words, *overrides])}"]


class StopRules:
    """`max_failures`, `max_requests`, `max_tokens`, `max_cost`, and checks that are mostly unanswered."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, roles: Mapping[str, RoleSettings], usage: RunUsage
    ) -> None:
        self._settings, self._roles, self._usage = settings, roles, usage
        self._asking = {step.name: step.role for step in pipeline.steps if step.role}

    @property
    def cost(self) -> float | None:
        """What the run has cost so far; None without prices."""
        return token_cost(self._usage, self._asking, self._roles)

    @property
    def whole_cost(self) -> float | None:
        """What it had cost if no reply had come from the cache."""
        return token_cost(self._usage, self._asking, self._roles, reused=True)

    def stop(self, *, failed: int, done: int) -> Stop | None:
        """That the run is to stop now; None when it goes on."""
        settings = self._settings
        if _too_many(settings.max_failures, failed, done):
            first = (
                f"{failed} of the first {failed + done} rows failed (max_failures={settings.max_failures})"
            )
            then = "set right what the errors above name, then the same command tries failed rows again"
            return Stop(first, f"{then}; or go on whatever fails", {"max_failures": "null"})
        if settings.min_mass and (step := self._usage.unreadable):
            count = self._usage.steps[step]
            reason = advice.unanswered_checks(step, self._asking[step], count, settings.min_mass)
            asked = f"the same command would ask {CHOICES} checks more and stop again"
            return Stop(reason, f"change what is said above; {asked}")
        reason = limit_reached(settings, self._usage, self.cost)
        return Stop(reason) if reason else None


def _too_many(most: str | None, failed: int, done: int) -> bool:
    """Whether `max_failures` is reached: a count of rows, or a share of those that ended."""
    if most is None:
        return False
    if most.endswith("%"):
        ended = failed + done
        return ended >= MIN_ROWS_FOR_SHARE and failed >= float(most[:-1]) / 100 * ended
    return failed >= int(most)


@contextmanager
def handle_signals(loop: LoopThread, stop: asyncio.Event, on_signal: Callable[[], None]) -> Iterator[None]:
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
