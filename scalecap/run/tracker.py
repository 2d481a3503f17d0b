"""Rows as they finish: each goes to the journal, is counted, and may stop the run."""

import asyncio
import logging
import time
from collections.abc import Mapping

from scalecap.config.settings import Settings
from scalecap.engines.settings import RoleSettings
from scalecap.interpreter.dispatch import RowUsage
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.run.costs import NO_ESTIMATE, estimate_cost
from scalecap.run.outputs import record
from scalecap.run.pending import PendingRows
from scalecap.run.progress import Progress
from scalecap.run.stopping import MIN_ROWS_FOR_SHARE, StopRules
from scalecap.run.summary import Summary

log = logging.getLogger(__name__)

MAX_ROWS_FOR_ESTIMATE = 10_000
"""Rows whose usage an estimate is made from, the first of a run."""


class RowTracker:
    """Follows one run from its first row to its last; `stop` is set when it must end early."""

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        roles: Mapping[str, RoleSettings],
        rows: PendingRows,
        summary: Summary,
    ) -> None:
        self._pipeline, self._rows, self._summary = pipeline, rows, summary
        self._preview = settings.preview is not None
        self._rules = StopRules(settings, pipeline, roles, summary.usage)
        self._usages: list[RowUsage] = []
        self._started = 0.0
        self._limited = False
        """Whether a limit of requests, tokens or cost stops the run."""
        self.progress = Progress(rows.source.total, summary.usage, live=settings.progress)
        self.stop = asyncio.Event()

    def start(self) -> None:
        """Starts the clock of the estimate, once the models are loaded."""
        self._started = time.monotonic()
        self.progress.reused, self._rows.on_reuse = self._rows.reused, self.progress.reuse

    def on_row(self, finished: Finished) -> None:
        """Keeps a finished row. Raises JournalError when it can't be written."""
        self._rows.journal.append(record(finished, self._pipeline))
        self.progress.row(failed=finished.error is not None)
        if len(self._usages) < MAX_ROWS_FOR_ESTIMATE:
            self._usages.append(finished.usage)
        if len(self._usages) == MIN_ROWS_FOR_SHARE and self._summary.estimate is None and not self._preview:
            self._estimate()
            log.info("%s", self._summary.estimate or NO_ESTIMATE)
        if not self.stop.is_set() and (
            stop := self._rules.stop(failed=self.progress.failed, done=self.progress.done)
        ):
            self.stop.set()
            self._summary.status, self._summary.reason = "stopped", stop.reason
            self._summary.next = stop.next(self._summary.resume)
            self._limited = not stop.fix

    def on_signal(self) -> None:
        """Notes the first SIGINT or SIGTERM."""
        self._summary.status = "interrupted"
        log.warning("Interrupted: waiting for rows in flight. Press Ctrl-C again to stop at once.")

    def abort(self, reason: str) -> None:
        """Notes that the engine or the data gave up."""
        self._summary.reason = reason
        if self._summary.status == "finished":
            self._summary.status = "stopped"

    async def finish(self) -> None:
        """Settles the run's status, estimate and cost after its last row."""
        ended = self.progress.failed + self.progress.done + self._rows.reused
        if self._limited and self._summary.status == "stopped" and ended == self._rows.source.total:
            self._summary.status, self._summary.reason = "finished", ""
        if self._preview:
            # Off the event loop: the next row may have to be read from a slow disk or the hub.
            if self._summary.status == "finished" and await asyncio.to_thread(self._rows.has_next):
                self._summary.status = "preview"
            self._estimate()
        self._summary.cost = self._rules.cost
        self._rows.complete = self._summary.status == "finished"

    def _estimate(self) -> None:
        """Estimates what all rows of the data take, from those that ended so far."""
        ended, total = self.progress.failed + self.progress.done, self._rows.source.total
        if not ended or not total:
            return
        cost = self._rules.cost_without_cache
        self._summary.estimate = estimate_cost(
            self._usages,
            total,
            seconds=(time.monotonic() - self._started) / ended,
            price=None if cost is None else cost / ended,
        )
