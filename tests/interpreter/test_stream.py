"""Many rows at once: how many are in flight, what stops a run, and what does not hold it up."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pipeline_runs import answer, go, row
from runs import roles
from steps import STEPS, one

from scalecap.engines.base import EngineDead, Sampling
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Pipeline


async def test_no_more_rows_than_in_flight_are_read_or_open():
    begun, ended = [], []

    def rows():
        for index in range(50):
            begun.append(index)
            assert len(begun) - len(ended) <= 4  # three in flight and the next one read
            yield row(index)

    async def script(request):
        await asyncio.sleep(0)
        return answer(request)

    await go(STEPS, rows(), script, in_flight=3, on_row=lambda done: ended.append(done.row.index))
    assert sorted(ended) == list(range(50))


async def test_rows_do_not_wait_for_each_other_between_steps():
    """The first row's caption takes until the second row is all done: no barrier between steps."""
    second_done = asyncio.Event()
    order = []

    async def script(request):
        if request.prompt.text == "Caption." and request.prompt.image.hash == "0":
            await asyncio.wait_for(second_done.wait(), 60)
        return answer(request)

    def on_row(done):
        order.append((done.row.index, done.error))
        second_done.set()

    await go(STEPS, [row(0), row(1)], script, on_row=on_row)
    assert order == [(1, None), (0, None)]


async def test_steps_of_a_row_that_need_not_wait_run_at_once():
    steps = {name: {"stage": "generate", "prompt": name, "image": "image"} for name in ("a", "b")}
    both = asyncio.Barrier(2)

    async def script(request):
        await asyncio.wait_for(both.wait(), 60)
        return "x"

    (done,), _ = await go(steps, [row()], script)
    assert done.error is None


async def test_a_slow_reader_does_not_hold_up_the_loop():
    first_done = threading.Event()

    def rows():
        yield row(0)
        assert first_done.wait(60), "the loop stood still while the next row was read"
        yield row(1)

    await go(STEPS, rows(), on_row=lambda done: first_done.set())


async def test_stop_finishes_rows_in_flight_and_starts_no_more():
    stop = asyncio.Event()

    async def script(request):
        stop.set()
        await asyncio.sleep(0.01)
        return answer(request)

    done, _ = await go(STEPS, (row(index) for index in range(100)), script, in_flight=2, stop=stop)
    assert 1 <= len(done) <= 2
    assert all(each.columns["final"] for each in done)


@pytest.mark.parametrize("end", ["stop", "engine", "cancel"])
async def test_a_row_that_is_still_being_read_does_not_hold_up_the_end(end: str):
    stop, waits, released = asyncio.Event(), threading.Event(), threading.Event()
    loop, before = asyncio.get_running_loop(), set(threading.enumerate())

    def rows():
        yield row()
        waits.set()
        if end == "stop":
            loop.call_soon_threadsafe(stop.set)
        released.wait(60)
        yield row(1)

    def script(request):
        waits.wait(60)
        if end == "engine":
            raise EngineDead("gone")
        return answer(request)

    running = asyncio.create_task(
        go(one({"stage": "generate", "prompt": "Caption.", "image": "image"}), rows(), script, stop=stop)
    )
    await asyncio.to_thread(waits.wait, 60)
    if end == "cancel":
        running.cancel()
    (result,) = await asyncio.gather(running, return_exceptions=True)
    assert not released.is_set()
    assert "rows" in [each.name for each in set(threading.enumerate()) - before]  # it still waits
    released.set()
    if end == "stop":
        assert [each.row.index for each in result[0]] == [0]
    else:
        assert isinstance(result, EngineDead if end == "engine" else asyncio.CancelledError)


async def test_a_dead_engine_is_raised_as_it_is():
    """An actor on a cluster raises it to another process, which knows it by its class."""

    def script(request):
        raise EngineDead("gone")

    dispatcher = Dispatcher(roles(script), None, Sampling(), 0, RunUsage(), 0.0)
    with ThreadPoolExecutor(1) as images, pytest.raises(EngineDead, match=r"^gone$"):
        await Pipeline.build(STEPS, None).run_row(row(), dispatcher, images)


async def test_a_dead_engine_ends_the_run():
    cancelled, begun = [], asyncio.Event()

    async def script(request):
        if request.prompt.image.hash == "1":
            await begun.wait()
            raise EngineDead("gone")
        try:
            if request.prompt.image.hash == "0":
                begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(request.prompt.image.hash)
            raise

    with pytest.raises(EngineDead, match="gone"):
        await go(STEPS, [row(0), row(1), row(2)], script)
    assert "0" in cancelled


async def test_what_rows_or_on_row_raise_ends_the_run():
    def rows():
        yield row(0)
        raise OSError("disk")

    def full(done):
        raise OSError("full")

    with pytest.raises(OSError, match="disk"):
        await go(STEPS, rows())
    with pytest.raises(OSError, match="full"):
        await go(STEPS, [row(0)], on_row=full)
