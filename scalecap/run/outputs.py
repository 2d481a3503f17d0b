"""From finished rows to files: their journal records, and the run's output files made from these."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from scalecap.config.exports import WriteSettings
from scalecap.data import writer
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.rows import Row
from scalecap.run.journal import Journal
from scalecap.run.summary import Summary


def metric_steps(pipeline: Pipeline) -> list[str]:
    """The steps whose column is a number, or a record of numbers."""
    return [step.name for step in pipeline.steps if step.stage.kinds[0] in ("number", "measures")]


def write(
    pipeline: Pipeline,
    journal: Journal,
    indices: Iterable[int],
    summary: Summary,
    settings: WriteSettings,
    *,
    image: str,
    data: Iterable[Row] | None,
) -> None:
    """Writes the rows with these indices from the journal to the run's files, and counts them in the summary.

    `settings`, `image` and `data` are those of `scalecap.data.writer.write`.
    """
    rows = partial(journal.records, indices)
    columns = list(pipeline.writers)
    written = writer.write(summary.output, rows, columns, settings, image=image, data=data)
    summary.add_written(written, settings)
    checks = {
        step.name: column
        for step in pipeline.steps
        for side, column in zip(step.stage.side, step.writes[1:], strict=True)
        if side in ("scores", "answers")
    }
    overall = {step.name: (step.stage.overall, step.writes) for step in pipeline.steps if step.stage.overall}
    conditions = {step.name: step.when.source for step in pipeline.steps if step.when}
    choices = {
        s.name: (s.settings["where"].source, s.selected) for s in pipeline.steps if s.settings.get("where")
    }
    metrics = metric_steps(pipeline)
    summary.better = {step.name: dict(step.stage.better) for step in pipeline.steps if step.name in metrics}
    summary.add_rows(rows, checks, metrics, overall, conditions, choices)


def record(finished: Finished, pipeline: Pipeline) -> dict[str, Any]:
    """The journal record of a row, with the columns of the data apart from those of the steps."""
    return {
        "index": finished.row.index,
        "id": finished.row.id,
        "stamp": finished.row.stamp,
        "image": finished.image_hash,
        "input": {name: value for name, value in finished.columns.items() if name not in pipeline.writers},
        "columns": {name: value for name, value in finished.columns.items() if name in pipeline.writers},
        "flags": finished.flags,
        "error": finished.error,
        "usage": list(finished.usage),
        **({"over_limit": dict(finished.over_limit)} if finished.over_limit else {}),
        **({"edits": dict(finished.row.edits)} if finished.row.edits else {}),
        **({"part": list(finished.row.part)} if finished.row.part else {}),
    }
