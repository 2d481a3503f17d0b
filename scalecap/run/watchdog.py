"""Warns of a stage that blocks the event loop, on which all rows and requests run."""

import asyncio
import logging
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Self

from scalecap.interpreter.step import Step

log = logging.getLogger(__name__)

STALL_SECONDS = 1.0
"""Seconds without a response from the loop that count as a stall."""
POLL_SECONDS = 0.25
"""Pause between two probes of the loop."""


class EventLoopWatchdog:
    """Watches the running loop from another thread; a context manager.

    Each module of stages is reported once.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps: dict[str, list[Step]] = {}
        """By module: a frame says which code runs, not for which step."""
        for step in steps:
            self._steps.setdefault(step.stage.unit.__module__, []).append(step)
        self._reported: set[str] = set()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        self._loop, self._watched = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            responded = threading.Event()
            self._loop.call_soon_threadsafe(responded.set)
            while not responded.wait(STALL_SECONDS) and not self._stopped.is_set():
                self._report(sys._current_frames().get(self._watched))

    def _report(self, frame: FrameType | None) -> None:
        """Logs the stage whose code blocks the loop, if it is a stage's; an import blocks it only once."""
        while frame is not None and (name := frame.f_globals.get("__name__")) not in self._steps:
            frame = None if name == "importlib._bootstrap" else frame.f_back
        if frame is None:
            return
        module = frame.f_globals["__name__"]
        if module not in self._reported:
            self._reported.add(module)
            steps = self._steps[module]
            names = " or ".join(step.name for step in steps)
            stages = " or ".join(dict.fromkeys(step.stage.name for step in steps))
            log.warning(
                "%s: stage %s blocks the event loop at %s:%d, and all rows with it; move slow work to a"
                " thread (await asyncio.to_thread(…)) and await what it waits for",
                *(names, stages, frame.f_code.co_filename, frame.f_lineno),
            )
