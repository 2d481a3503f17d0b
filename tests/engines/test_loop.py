"""The engines' event loop runs in its own thread."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from scalecap.engines.loop import LoopThread


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


async def thread() -> threading.Thread:
    return threading.current_thread()


def test_all_work_shares_one_thread_until_it_is_closed(loop: LoopThread):
    first, second = loop.run(thread()), loop.run(thread())
    assert first is second is not threading.current_thread()
    loop.close()
    assert not first.is_alive()
    assert loop.run(thread()).is_alive()


async def test_it_works_inside_of_a_running_loop(loop: LoopThread):
    assert loop.run(thread()) is await asyncio.wrap_future(loop.submit(thread()))


def test_an_error_reaches_the_caller(loop: LoopThread):
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run(fail())


@pytest.mark.parametrize("attempt", range(100))
def test_ctrl_c_cancels_the_work_and_waits_for_its_end(loop: LoopThread, attempt: int):
    """Wherever the main thread is when the signal arrives."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    ended = []

    async def endless() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.001)
            ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        loop.run(endless())
    assert ended == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_go_where_the_work_wants_them(loop: LoopThread):
    async def wait_for_signal() -> list[str]:
        threads, stop = [], asyncio.Event()

        def handle() -> None:
            threads.append(threading.current_thread().name)
            stop.set()

        with loop.signals_to(handle):
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.wait()
        return threads

    assert loop.run(wait_for_signal()) == ["event loop"]
