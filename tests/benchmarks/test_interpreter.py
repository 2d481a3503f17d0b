"""Memory does not grow with the rows."""

import pytest
from interpreter import apart


@pytest.mark.slow
def test_memory_is_flat():
    few, many = apart(2_000, cache=True), apart(20_000, cache=True)
    assert (few.requests, many.requests) == (18_000, 180_000)
    assert many.peak < 1.05 * few.peak
