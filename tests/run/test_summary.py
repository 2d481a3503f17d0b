"""The memory of a summary does not grow with the number of rows."""

import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from runs import Compose

from scalecap.engines.base import Sampling
from scalecap.interpreter.binding import bind
from scalecap.metrics import verifier
from scalecap.run.row_counts import RowCounts
from scalecap.run.summary import Summary
from scalecap.runner import plan, run
from scalecap.stages import ModelClient, stage


def records(rows: int) -> Iterator[dict[str, Any]]:
    """Rows with a metric of two captions and a labelled statement; every second failed at its own path."""
    for index in range(rows):
        measured = {name: {"count": index % 7, "of": 9} for name in ("true", "wrong")} | {"words": index % 50}
        p_yes = index % 97 / 97
        answers = [{"p_yes": p_yes, "label": index % 3 == 0, "right": (p_yes > 0.5) == (index % 3 == 0)}]
        columns = {"m": {"first": measured, "final": measured}, "check": {}, "check_answers": answers}
        error = {"step": "image", "kind": "missing_file", "message": f"no such file: '/data/{index}.png'"}
        yield {"columns": columns, "flags": {}, "error": error if index % 2 else None}


def summed(rows: int) -> tuple[Summary, int]:
    """The summary of this many rows, and the peak of bytes allocated to make it."""
    summary = Summary(Path(), "")
    metric = bind({"m": {"stage": "density", "captions": "caption"}}, {"caption": "text"}, [], Sampling())
    tracemalloc.start()
    try:
        overall = {"check": (verifier.quality, ("check", "check_answers"))}
        counts = RowCounts(summary, metric)
        for record in records(rows):
            counts.add(record)
        summary.add_overall(partial(records, rows), overall)
        assert summary.metrics
        return summary, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [12_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_memory_is_flat(rows: int, monkeypatch: pytest.MonkeyPatch):
    # Each resample sorts all answers, which takes time and no more memory.
    monkeypatch.setattr(verifier, "RESAMPLES", 8)
    _, few = summed(4_000)
    summary, many = summed(rows)
    # Only what thresholds are found from grows (124 bytes): P(yes), label and verdict, sorted and resampled.
    assert (many - few) / (rows - 4_000) < 200
    assert summary.done == summary.failed == rows // 2
    assert summary.errors.most_common() == [
        ("image: missing_file: no such file: '/data/1.png' (and similar)", rows // 2)
    ]
    assert summary.metrics["m.final.words"].rows == rows
    assert summary.metrics["m.final.words"].mean == 24.5


@pytest.mark.parametrize(
    ("where", "note"),
    [
        ("question", "raw_answers: `where: question` held for all 4 items."),
        ("question == 'x'", "raw_answers: `where: question == 'x'` held for none of 4 items."),
        ("'position' in question", None),
    ],
)
def test_a_choice_of_items_that_made_no_difference_is_noted(
    compose: Compose, engines: Any, where: str, note: str | None
):
    """Two questions about each of two images."""
    words = ["data.limit=2", f'+pipeline.steps.raw_answers.where="{where}"']
    first = run(compose(*words), engines=engines)
    assert [each for each in first.notes if "where" in each] == ([note] if note else [])
    again = run(compose(*words), engines=engines)  # from the rows in the journal
    assert [each for each in again.notes if "where" in each] == ([note] if note else [])


def test_rows_of_another_config_on_which_a_choice_fails_are_counted(compose: Compose, engines: Any):
    words = ["data.limit=2", "report=false"]
    run(compose(*words), engines=engines)
    where = "+pipeline.steps.raw_answers.where='question > 1'"
    again = run(compose(*words, where, "resume=force"), engines=engines)
    assert (again.done, again.reused) == (2, 2)
    assert not [each for each in again.notes if "held" in each]


def test_a_stage_may_have_a_setting_where_of_its_own(compose: Compose, engines: Any):
    @stage(name="t/note")
    class Note:
        role = None

        def __init__(self, *, where: str = "left") -> None:
            self.where = where

        async def __call__(self, client: ModelClient, *, text: str) -> str:
            return f"{text} {self.where}"

    settings = compose(
        "data.limit=1", "report=false", "+pipeline.steps.note={stage: t/note, text: init_caption}"
    )
    assert "note: t/note([init_caption]) -> [note]" in plan(settings)
    assert run(settings, engines=engines).done == 1
