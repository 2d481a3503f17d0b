"""An event loop in a thread of its own, so that a run works the same in a script, a notebook and a server.

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
    """Runs coroutines on its own loop; the thread starts with the first and ends with `close`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._on_signal: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts `work` on the loop; from an async program await `asyncio.wrap_future` of the result."""
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end and returns its result.

        Ctrl-C cancels it, waits until it has ended (a second one does not) and raises KeyboardInterrupt,
        unless `signals_to` says otherwise for the time being.
        """
        loop = self._running()
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
        """Inside of the block, SIGINT and SIGTERM call `handle` on the loop.

        Only where `run` was called from the main thread, which is the one that gets signals.
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
        before: dict[signal.Signals, Any] = {}

        def received(number: int, frame: FrameType | None) -> None:
            # An error raised here would surface at any line of `run`, even before its work is in its hands.
            if self._on_signal:
                loop.call_soon_threadsafe(self._on_signal)
            elif before[signal.Signals(number)] is signal.default_int_handler:
                interrupt()
            elif callable(usual := before[signal.Signals(number)]):
                usual(number, frame)
            elif usual == signal.SIG_DFL:
                signal.signal(number, usual)
                os.kill(os.getpid(), number)

        for each in (signal.SIGINT, signal.SIGTERM):
            before[each] = signal.signal(each, received)
        try:
            yield
        finally:
            for each, usual in before.items():
                signal.signal(each, usual if usual is not None else signal.SIG_DFL)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="event loop", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Cancels what is left, and ends the loop and its thread; a later call starts anew."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_wind_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _wind_up() -> None:
    """What `asyncio.run` does at its end."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
