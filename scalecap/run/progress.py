"""Progress of a run: a live bar on a terminal, otherwise a log line every few seconds."""

import asyncio
import logging
import time
from importlib.util import find_spec
from typing import Self

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scalecap.interpreter.dispatch import RunUsage
from scalecap.messages import plural

log = logging.getLogger(__name__)
console = Console(stderr=True)
"""Messages go to stderr; results go to stdout."""
LINE_SECONDS = 15.0
"""Seconds between two progress lines in the log."""


def screen_handler() -> logging.Handler:
    """A handler that prints messages above the bar, and progress lines only where there is no bar."""
    handler: logging.Handler = logging.StreamHandler()
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False)
    if _shows_bars():
        handler.addFilter(lambda record: record.name != __name__)
    return handler


def _shows_bars() -> bool:
    """Whether a live bar can be shown: on a terminal, or in a notebook with ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


class Progress:
    """Counts rows as they finish; a context manager."""

    def __init__(self, total: int | None, usage: RunUsage, *, live: bool) -> None:
        self.total, self.usage = total, usage
        self.done = self.failed = self.reused = 0
        self._bar = Bar(
            TextColumn("rows"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not (live and _shows_bars()),
        )
        self._task = self._bar.add_task("rows", total=total, note="")

    def __enter__(self) -> Self:
        """Starts the bar; needs a running event loop, which refreshes it."""
        self._loop = asyncio.get_running_loop()
        self._started = self._logged = time.monotonic()
        self._bar.start()
        self._tick()
        return self

    def __exit__(self, *_: object) -> None:
        self._next.cancel()
        self._show()
        self._bar.stop()

    def reuse(self, rows: int) -> None:
        """Counts rows that an earlier run finished."""
        self.reused += rows

    def row(self, *, failed: bool) -> None:
        """Counts a row that finished now."""
        self.failed += failed
        self.done += not failed

    def _tick(self) -> None:
        self._show()
        self._next = self._loop.call_later(0.5, self._tick)

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.done + self.failed + self.reused, note=self._note())
        now = time.monotonic()
        if now - self._logged >= LINE_SECONDS:
            self._logged = now
            log.info("%s", self)

    def _note(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-6)
        tokens = sum(count.generated_tokens for count in self.usage.steps.values())
        rate = (self.done + self.failed) / seconds
        return f"{rate:.2f} rows/s, {tokens / seconds:.0f} tokens/s, {self.failed} failed"

    def __str__(self) -> str:
        of = left = ""
        finished = self.done + self.failed + self.reused
        if self.total is not None:
            of = f" of {self.total}"
            if computed := finished - self.reused:
                left = (
                    f", {(self.total - finished) * (time.monotonic() - self._started) / computed:.0f} s left"
                )
        return f"{f'{finished}{of} rows' if of else plural(finished, 'row')}, {self._note()}{left}"
