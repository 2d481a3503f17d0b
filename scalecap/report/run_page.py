"""`report.html`: each picture with what was said about it, what was dropped and why, and what remained.

    scalecap report DIR

writes it into the folder of a run. It is one file, to be opened from disk.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from scalecap.calibration import record
from scalecap.data.files import redact_urls
from scalecap.report.labelling import draw, large
from scalecap.report.page import Block, batches, block, picture_blocks, templates
from scalecap.report.pictures import thumbnails
from scalecap.report.row import numbers, told
from scalecap.rows import Row as DataRow
from scalecap.run.folder import MAX_REPORT_ROWS, WORD, FolderError, Row, Run, checks
from scalecap.stats import by_step, label, mean

log = logging.getLogger(__name__)

TOLD = ("rows", "notes", "metrics", "checks", "steps", "errors", "models", "command", "seconds")
"""What the page tells of a summary, where there is one."""


def write_report(
    folder: Path, source: Iterable[DataRow] | None = None, *, seed: int = 0, uncertain: bool = False
) -> Path:
    """Writes `report.html` in the folder of a run.

    Args:
        source: the run's data; None opens what the run's config says.
        seed, uncertain: of the statements that are drawn for labelling (`scalecap.report.labelling.draw`).

    Raises:
        FolderError: the folder has no captions.
    """
    run = Run(folder, folder.resolve().name)
    rows = list(islice(run.rows(), MAX_REPORT_ROWS))
    if not rows and run.failure:
        raise FolderError(f"the run in {folder} failed: {run.failure}")
    if not rows:
        raise FolderError(f"{folder} has no captions.jsonl with rows: give the folder of a run")
    path = folder / "report.html"
    part = path.with_name("report.html.part")
    template = templates().get_template("report.html.j2")
    told = run.summary.get("rows", {})
    calibrated = calibration(rows) | _labelled(folder)
    drawn = draw(rows, seed, uncertain=uncertain)
    stream = template.stream(
        run=run,
        summary=dict.fromkeys(TOLD) | run.summary | {"command": redact_urls(run.summary.get("command", ""))},
        steps=run.steps,
        shown=len(rows),
        total=max(len(rows), told.get("done", 0) + told.get("failed", 0)),
        metrics=by_step(run.summary.get("metrics", {})),
        calibrated=calibrated,
        labelled=drawn if drawn["steps"] else None,
        blocks=[
            *_blocks(run, rows, thumbnails(run, rows, source, large=large(drawn))),
            block("calibration", list(calibrated.values())),
            block("draw", drawn),
        ],
    )
    with part.open("wb") as file:
        stream.dump(file, encoding="utf-8")
    part.replace(path)
    return path


def _blocks(run: Run, rows: Sequence[Row], pictures: Sequence[bytes | str]) -> Iterator[Block]:
    for number, batch in enumerate(batches(rows)):
        yield block(f"rows-{number}", [told(run, row) for row in batch])
    yield from picture_blocks(pictures)
    yield block("index", index(run, rows))


def calibration(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """By step that asked about labelled statements: for each tenth of P(yes) a point of the plot.

    `x` is their mean P(yes), `y` the share that is true with its 95 % interval over rows,
    `label` their number.
    """
    found: dict[str, list[list[list[tuple[float, bool]]]]] = {}
    for row in rows:
        for column, value in row.items():
            answers = value if column.endswith("_answers") and isinstance(value, list) else []
            asked = [each for each in answers if isinstance(each, dict) and _is_labelled(each)]
            bins = found.setdefault(column.removesuffix("_answers"), [[] for _ in range(10)]) if asked else []
            for at, every in enumerate(bins):
                inside = [each for each in asked if min(9, int(each["p_yes"] * 10)) == at]
                every += [[(float(each["p_yes"]), bool(each["label"])) for each in inside]] if inside else []
    return {step: [_bin(every) for every in bins if every] for step, bins in found.items()}


def _labelled(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The same points of the checks that were calibrated by labels."""
    path = folder / record.NAME
    try:
        steps = record.read_calibration(path).steps if path.exists() else {}
    except record.CalibrationError as error:
        log.warning("the page doesn't show %s: %s", path, error)
        return {}
    return {name: [dict(point) for point in step.reliability] for name, step in steps.items()}


def _is_labelled(answer: Mapping[str, Any]) -> bool:
    return isinstance(answer.get("p_yes"), int | float) and "label" in answer


def _bin(rows: Sequence[Sequence[tuple[float, bool]]]) -> dict[str, Any]:
    share = mean([(sum(true for _, true in row), len(row)) for row in rows])
    assert share is not None
    said = [p for row in rows for p, _ in row]
    return {"x": sum(said) / len(said), "y": list(share[:3]), "label": f"{len(said):,}"}


def index(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """What rows are filtered and sorted by: `tags` (labels), `numbers` (names), and each row's of both."""
    tags: dict[str, int] = {}
    numbers: dict[str, int] = {}
    told: list[tuple[list[int], dict[int, float]]] = []
    for row in rows:
        own = [tags.setdefault(tag, len(tags)) for tag in _tags(row)]
        values: dict[int, float] = {}
        for name, value in _sortable(run, row):
            values[numbers.setdefault(name, len(numbers))] = value
        told.append((own, values))
    return {
        "tags": list(tags),
        "numbers": list(map(label, numbers)),
        "rows": [[own, [values.get(place) for place in range(len(numbers))]] for own, values in told],
    }


def _tags(row: Row) -> Iterator[str]:
    if error := row.get("error"):
        yield "failed"
        yield f"failed at {error.get('step') or 'row'}: {error.get('kind')}"
    for step, scores in checks(row):
        if scores:
            kept = sum(bool(each["kept"]) for each in scores)
            yield f"{step}: dropped some" if kept < len(scores) else f"{step}: kept all"
            if not kept:
                yield f"{step}: dropped all"
    flags = row.get("flags")
    for step, marks in (flags if isinstance(flags, dict) else {}).items():
        yield from (f"{step}: {mark}" for mark in marks)


def _sortable(run: Run, row: Row) -> Iterator[tuple[str, float]]:
    scores = [each for _, every in checks(row) for each in every]
    if scores:
        yield "dropped share", sum(not each["kept"] for each in scores) / len(scores)
    column = run.caption_column(row)
    if column and isinstance(row[column], str):
        yield "caption length", len(WORD.findall(row[column]))
    yield from numbers(run, row)
