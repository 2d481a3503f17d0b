"""From finished rows to files: their journal records, and the run's output files made from these."""

from collections.abc import Iterable
from functools import partial

from scalecap.config.exports import WriteSettings
from scalecap.data import writer
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.rows import Record, Row
from scalecap.run.journal import Journal
from scalecap.run.row_counts import RowCounts
from scalecap.run.summary import Summary


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
    records = partial(journal.records, indices)
    counts, columns = RowCounts(summary, pipeline.steps), list(pipeline.writers)
    written = writer.write(
        summary.output, records, columns, settings, image=image, data=data, observe=counts.add
    )
    summary.add_written(written, settings)
    counts.note_constants()
    summary.better = {step.name: dict(step.stage.better) for step in pipeline.steps if step.is_metric}
    summary.add_overall(
        records,
        {step.name: (step.stage.overall, step.writes) for step in pipeline.steps if step.stage.overall},
    )


def record(finished: Finished, pipeline: Pipeline) -> Record:
    """The journal record of a row, with the columns of the data apart from those of the steps."""
    found: Record = {
        "index": finished.row.index,
        "id": finished.row.id,
        "stamp": finished.row.stamp,
        "image": finished.image_hash,
        "input": {name: value for name, value in finished.columns.items() if name not in pipeline.writers},
        "columns": {name: value for name, value in finished.columns.items() if name in pipeline.writers},
        "flags": finished.flags,
        "error": finished.error,
        "usage": list(finished.usage),
    }
    if finished.over_limit:
        found["over_limit"] = dict(finished.over_limit)
    if finished.row.edits:
        found["edits"] = dict(finished.row.edits)
    if finished.row.part:
        found["part"] = list(finished.row.part)
    return found
