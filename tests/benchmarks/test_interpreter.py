"""Memory does not grow with the rows."""

import pytest
from interpreter import measure_in_process


@pytest.mark.slow
def test_memory_is_flat():
    few, many = measure_in_process(1_000, cache=True), measure_in_process(6_000, cache=True)
    assert (few.requests, many.requests) == (9_000, 54_000)
    assert many.peak < 1.03 * few.peak
