"""An event loop in its own thread, so that a run works the same in a script, a notebook and a server.

Code that already runs on an event loop (Jupyter, any async program) can't start another one in its thread.
"""

import asyncio
import concurrent.futures
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on its own event loop; the thread starts with the first one and ends with `close`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._on_signal: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts `work` on the loop. Async callers await `asyncio.wrap_future` of the result."""
        return asyncio.run_coroutine_threadsafe(work, self._ensure_running())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` and returns its result.

        Raises:
            KeyboardInterrupt: after Ctrl-C, which cancels `work` and waits for its end (a second one does not
                wait), unless `signals_to` is in effect.
        """
        loop = self._ensure_running()
        interrupted = False
        task: asyncio.Task[T] | None = None

        async def tracked() -> T:
            nonlocal task
            task = asyncio.current_task()
            cancel()
            return await work

        def cancel() -> None:
            if interrupted and task and not task.cancelling():
                task.cancel()

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                raise KeyboardInterrupt
            interrupted = True
            loop.call_soon_threadsafe(cancel)

        with self._signals(loop, interrupt):
            try:
                result = asyncio.run_coroutine_threadsafe(tracked(), loop).result()
            except concurrent.futures.CancelledError:
                raise KeyboardInterrupt from None
        if interrupted:
            raise KeyboardInterrupt
        return result

    @contextmanager
    def signals_to(self, handle: Callable[[], None]) -> Iterator[None]:
        """Inside the block, SIGINT and SIGTERM call `handle` on the loop.

        This needs `run` to be called from the main thread, the only one that receives signals.
        """
        self._on_signal = handle
        try:
            yield
        finally:
            self._on_signal = None

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop, interrupt: Callable[[], None]) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[signal.Signals, Any] = {}

        def received(number: int, frame: FrameType | None) -> None:
            # An exception raised here could surface at any line of `run`, even before the work is started.
            if self._on_signal:
                loop.call_soon_threadsafe(self._on_signal)
            elif previous[signal.Signals(number)] is signal.default_int_handler:
                interrupt()
            elif callable(handler := previous[signal.Signals(number)]):
                handler(number, frame)
            elif handler == signal.SIG_DFL:
                signal.signal(number, handler)
                os.kill(os.getpid(), number)

        for each in (signal.SIGINT, signal.SIGTERM):
            previous[each] = signal.signal(each, received)
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler if handler is not None else signal.SIG_DFL)

    def _ensure_running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
                self._loop = runner.get_loop()
                self._thread = threading.Thread(target=_run, args=(runner,), name="event loop", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Cancels all tasks and stops the loop and its thread; a later call starts new ones."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop and thread:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def _run(runner: asyncio.Runner) -> None:
    with runner:  # at its end it cleans up as `asyncio.run` does
        runner.get_loop().run_forever()
