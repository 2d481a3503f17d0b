"""Memory does not grow with the rows."""

import pytest
from interpreter import measure_in_process


@pytest.mark.slow
def test_memory_is_flat():
    # Within 1,500 rows everything is allocated that is kept.
    few, many = measure_in_process(2_000, cache=True), measure_in_process(4_000, cache=True)
    assert (few.requests, many.requests) == (18_000, 36_000)
    assert many.peak < 1.01 * few.peak
