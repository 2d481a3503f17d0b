"""What a summary holds does not grow with the rows that it counts."""

import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scalecap.metrics import verifier
from scalecap.summary import Summary


def records(rows: int) -> Iterator[dict[str, Any]]:
    """Rows with a metric of two captions and a labelled statement; every other failed at its own path."""
    for index in range(rows):
        measured = {name: {"count": index % 7, "of": 9} for name in ("true", "wrong")} | {"words": index % 50}
        p_yes = index % 97 / 97
        answers = [{"p_yes": p_yes, "label": index % 3 == 0, "right": (p_yes > 0.5) == (index % 3 == 0)}]
        columns = {"m": {"first": measured, "final": measured}, "check": {}, "check_answers": answers}
        error = {"step": "image", "kind": "missing_file", "message": f"no such file: '/data/{index}.png'"}
        yield {"columns": columns, "flags": {}, "error": error if index % 2 else None}


def summed(rows: int) -> tuple[Summary, int]:
    """The summary of so many rows, and the most bytes that it took to make it."""
    summary = Summary(Path(), "")
    tracemalloc.start()
    try:
        overall = {"check": (verifier.quality, ("check", "check_answers"))}
        summary.add_rows(partial(records, rows), {}, ["m"], overall, {})
        assert summary.metrics
        return summary, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [12_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_is_flat(rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verifier, "DRAWS", 8)  # each sorts all answers, which takes time and no more memory
    _, few = summed(4_000)
    summary, many = summed(rows)
    # All that grows (124 bytes) is what the threshold is read from: P(yes), label and verdict, sorted, drawn.
    assert (many - few) / (rows - 4_000) < 200
    assert summary.done == summary.failed == rows // 2
    assert summary.errors.most_common() == [
        ("image: missing_file: no such file: '/data/1.png' (and others like it)", rows // 2)
    ]
    assert summary.metrics["m.final.words"].rows == rows
    assert summary.metrics["m.final.words"].mean == 24.5
