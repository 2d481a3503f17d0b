"""Warns of a stage that holds up the event loop, on which all rows and requests live."""

import asyncio
import logging
import sys
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

from scalecap.interpreter.step import Step

log = logging.getLogger(__name__)

STALL_SECONDS = 1.0
"""Seconds without an answer from the loop that are told."""
POLL_SECONDS = 0.25


class EventLoopWatchdog:
    """Watches the running loop from a thread of its own; a context manager.

    Each module of stages is told once.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps: dict[str, list[Step]] = {}
        """By module: a frame tells where the code is, and not for which step."""
        for step in steps:
            self._steps.setdefault(step.stage.unit.__module__, []).append(step)
        self._reported: set[str] = set()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._loop, self._watched = asyncio.get_running_loop(), threading.get_ident()
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            answered = threading.Event()
            self._loop.call_soon_threadsafe(answered.set)
            while not answered.wait(STALL_SECONDS) and not self._ended.is_set():
                self._report(sys._current_frames().get(self._watched))

    def _report(self, frame: FrameType | None) -> None:
        """Names the stage that the loop is in, if it is in one."""
        while frame is not None and frame.f_globals.get("__name__") not in self._steps:
            frame = frame.f_back
        if frame is None:
            return
        module = frame.f_globals["__name__"]
        if module not in self._reported:
            self._reported.add(module)
            steps = self._steps[module]
            names = " or ".join(step.name for step in steps)
            stages = " or ".join(dict.fromkeys(step.stage.name for step in steps))
            log.warning(
                "%s: the stage %s holds up all rows at %s:%d: work that takes long belongs in a thread"
                " (await asyncio.to_thread(…)), and waiting in an await",
                *(names, stages, frame.f_code.co_filename, frame.f_lineno),
            )
