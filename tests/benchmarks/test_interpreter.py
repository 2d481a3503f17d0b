"""Memory does not grow with the rows."""

import pytest
from interpreter import apart


@pytest.mark.slow
def test_memory_is_flat():
    few, many = apart(1_000, cache=True), apart(6_000, cache=True)
    assert (few.requests, many.requests) == (9_000, 54_000)
    assert many.peak < 1.03 * few.peak
