"""Early stopping: failures, limits, unanswered checks and signals."""

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
from scalecap.interpreter.dispatch import MIN_CHOICES, RunUsage
from scalecap.interpreter.pipeline import Pipeline
from scalecap.run.costs import limit_reached, token_cost

log = logging.getLogger(__name__)

MIN_ROWS_FOR_SHARE = 20
"""Rows that must finish before a percentage in `max_failures` applies."""


class Stop(NamedTuple):
    """Why a run stops early, and what to do about it."""

    reason: str
    fix: str = ""
    """What to do first; empty where the same command simply resumes."""
    overrides: Mapping[str, str] = MappingProxyType({})
    """Overrides with which the same command resumes."""

    def next(self, command: str) -> list[str]:
        """Lines of the last screen that say what to do; none where the same command resumes."""
        words = [word for word in shlex.split(command) if word.partition("=")[0] not in self.overrides]
        overrides = [f"{key}={value}" for key, value in self.overrides.items()]
        if not overrides:
            return [f"Next: {self.fix}."] if self.fix else []
        return [f"Next: {self.fix}:", f"  {shlex.join([*words, *overrides])}"]


class StopRules:
    """`max_failures`, `max_requests`, `max_tokens`, `max_cost`, and checks that are mostly unanswered."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, roles: Mapping[str, RoleSettings], usage: RunUsage
    ) -> None:
        self._settings, self._roles, self._usage = settings, roles, usage
        self._roles_by_step = {step.name: step.role for step in pipeline.steps if step.role}

    @property
    def cost(self) -> float | None:
        """What the run has cost so far; None without prices."""
        return token_cost(self._usage, self._roles_by_step, self._roles)

    @property
    def cost_without_cache(self) -> float | None:
        """What it would have cost without a single cache hit; None without prices."""
        return token_cost(self._usage, self._roles_by_step, self._roles, reused=True)

    def stop(self, *, failed: int, done: int) -> Stop | None:
        """Why the run must stop now; None when it goes on."""
        settings = self._settings
        if _too_many(settings.max_failures, failed, done):
            reason = (
                f"{failed} of the first {failed + done} rows failed (max_failures={settings.max_failures})"
            )
            fix = "fix the errors above and run the same command, which retries failed rows"
            return Stop(reason, f"{fix}; or ignore failures", {"max_failures": "null"})
        if settings.min_mass and (step := self._usage.unanswered_step):
            usage, role = self._usage.steps[step], self._roles_by_step[step]
            why = "the replies begin with neither of the English words yes and no"
            if usage.choices:
                mass = f"have a probability below min_mass={settings.min_mass:g}"
                why = f"yes and no together {mass}, so the model would reply something else"
            reason = (
                f"{step}: {usage.flags['unanswered']} of its first {usage.checks} checks are unanswered:"
                f" {why}. If it reasons first, disable that:"
                f" model.{role}.chat_template_kwargs.enable_thinking=false."
                f" Otherwise try another prompt (pipeline.steps.{step}.prompt=…), or accept every answer with"
                " min_mass=0. Use another output=, since finished rows are not redone."
            )
            again = f"the same command would send {MIN_CHOICES} more checks and stop again"
            return Stop(reason, f"change a setting as said above; {again}")
        reason = limit_reached(settings, self._usage, self.cost)
        return Stop(reason) if reason else None


def _too_many(limit: str | None, failed: int, done: int) -> bool:
    """Whether `max_failures` is reached: a number of rows, or a percentage of those that finished."""
    if limit is None:
        return False
    if limit.endswith("%"):
        finished = failed + done
        return finished >= MIN_ROWS_FOR_SHARE and failed >= float(limit[:-1]) / 100 * finished
    return failed >= int(limit)


@contextmanager
def handle_signals(loop: LoopThread, stop: asyncio.Event, on_signal: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`; the second cancels the block."""
    task = asyncio.current_task()
    interrupted = False

    def handle() -> None:
        nonlocal interrupted
        if interrupted and task is not None:
            log.warning("Stopping now.")
            task.cancel()
            return
        interrupted = True
        stop.set()
        on_signal()

    try:
        with loop.signals_to(handle):
            yield
    except asyncio.CancelledError:
        if not interrupted or task is None:
            raise
        task.uncancel()
