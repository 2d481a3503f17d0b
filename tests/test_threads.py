"""A pool that nothing waits for."""

import threading

import pytest
from processes import python

from scalecap.threads import DaemonPool


def test_calls_run_in_order_and_what_they_raise_is_theirs():
    with DaemonPool(1, "pool") as pool:
        futures = [pool.submit(pow, 2, each) for each in (1, 2)]
        broken = pool.submit(int, "x")
        assert [each.result(60) for each in futures] == [2, 4]
        with pytest.raises(ValueError, match="invalid literal"):
            broken.result(60)
        assert pool.submit(pow, 2, 3).result(60) == 8


def test_a_call_that_hangs_holds_up_neither_the_block_nor_other_threads():
    released = threading.Event()
    with DaemonPool(2, "pool") as pool:
        hanging = pool.submit(released.wait, 600)
        assert pool.submit(pow, 2, 2).result(60) == 4
        waiting = [pool.submit(released.wait, 600) for _ in range(2)]
        assert waiting[1].cancel()
    assert not hanging.done()
    released.set()
    assert hanging.result(60)
    assert waiting[0].result(60)


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process():
    code = """
import threading
from scalecap.threads import DaemonPool
with DaemonPool(1, "pool") as pool:
    pool.submit(threading.Event().wait)
print("ended")
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (0, "ended\n")
