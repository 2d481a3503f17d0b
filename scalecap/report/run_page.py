"""`report.html`: each image with its captions, checked texts, answers and metrics; labelling of statements.

    scalecap report DIR

writes one self-contained file to the folder of a run.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from scalecap.calibration import record
from scalecap.data.files import redact_urls
from scalecap.data.groups import batches
from scalecap.report.labelling import draw, large
from scalecap.report.page import BLOCK_ROWS, Block, block, image_blocks, templates
from scalecap.report.row import row_metrics, row_view
from scalecap.report.thumbnails import thumbnails
from scalecap.rows import Row as DataRow
from scalecap.run.folder import MAX_REPORT_ROWS, WORD, FolderError, Row, Run, checks
from scalecap.stats import by_step, label, mean

log = logging.getLogger(__name__)

SUMMARY_KEYS = ("rows", "notes", "metrics", "checks", "steps", "errors", "models", "command", "seconds")
"""Keys of `summary.json` that the page shows."""


def write_report(
    folder: Path, source: Iterable[DataRow] | None = None, *, seed: int = 0, uncertain: bool = False
) -> Path:
    """Writes `report.html` to the folder of a run.

    Args:
        source: the run's data; None opens it as the run's config says.
        seed, uncertain: how statements are sampled for labelling (`scalecap.report.labelling.draw`).

    Returns:
        The path of the page.

    Raises:
        FolderError: the folder has no captions.
    """
    run = Run(folder, folder.resolve().name)
    rows = list(islice(run.rows(), MAX_REPORT_ROWS))
    if not rows and run.failure:
        raise FolderError(f"the run in {folder} failed: {run.failure}")
    if not rows:
        raise FolderError(f"expected the folder of a run, got {folder} without rows in captions.jsonl")
    path = folder / "report.html"
    part = path.with_name("report.html.part")
    template = templates().get_template("report.html.j2")
    counts = run.summary.get("rows", {})
    calibrated = calibration(rows) | _labelled(folder)
    drawn = draw(rows, seed, uncertain=uncertain, steps=run.steps)
    stream = template.stream(
        run=run,
        summary=dict.fromkeys(SUMMARY_KEYS)
        | run.summary
        | {"command": redact_urls(run.summary.get("command", ""))},
        steps=run.steps,
        shown=len(rows),
        total=max(len(rows), counts.get("done", 0) + counts.get("failed", 0)),
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


def _blocks(run: Run, rows: Sequence[Row], images: Sequence[bytes | str]) -> Iterator[Block]:
    for number, batch in enumerate(batches(rows, BLOCK_ROWS)):
        yield block(f"rows-{number}", [row_view(run, row) for row in batch])
    yield from image_blocks(images)
    yield block("index", index(run, rows))


def calibration(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Reliability diagrams of the steps that answered labelled statements, a point per tenth of P(yes).

    A point is {x: mean P(yes), y: [share of true statements, low, high] with a 95 % interval over rows,
    label: number of statements}.
    """
    found: dict[str, list[list[list[tuple[float, bool]]]]] = {}
    for row in rows:
        for column, value in row.items():
            answers = value if column.endswith("_answers") and isinstance(value, list) else []
            labelled = [each for each in answers if isinstance(each, dict) and _is_labelled(each)]
            if not labelled:
                continue
            bins = found.setdefault(column.removesuffix("_answers"), [[] for _ in range(10)])
            for tenth, by_row in enumerate(bins):
                inside = [each for each in labelled if min(9, int(each["p_yes"] * 10)) == tenth]
                if inside:
                    by_row.append([(float(each["p_yes"]), bool(each["label"])) for each in inside])
    return {step: [_point(by_row) for by_row in bins if by_row] for step, bins in found.items()}


def _labelled(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The same for checks that `scalecap calibrate` calibrated."""
    path = folder / record.FILE_NAME
    try:
        steps = record.read_calibration(path).steps if path.exists() else {}
    except record.CalibrationError as error:
        log.warning("%s is not shown on the page: %s", path, error)
        return {}
    return {name: [dict(point) for point in step.reliability] for name, step in steps.items()}


def _is_labelled(answer: Mapping[str, Any]) -> bool:
    return isinstance(answer.get("p_yes"), int | float) and "label" in answer


def _point(rows: Sequence[Sequence[tuple[float, bool]]]) -> dict[str, Any]:
    share = mean([(sum(true for _, true in row), len(row)) for row in rows])
    assert share is not None
    p_yes = [p for row in rows for p, _ in row]
    return {"x": sum(p_yes) / len(p_yes), "y": list(share[:3]), "label": f"{len(p_yes):,}"}


def index(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """Filters and sort keys of rows: {tags: names, numbers: names, rows: [[tag ids], [values or null]]}."""
    tags: dict[str, int] = {}
    numbers: dict[str, int] = {}
    found: list[tuple[list[int], dict[int, float]]] = []
    for row in rows:
        own = [tags.setdefault(tag, len(tags)) for tag in _tags(row)]
        values = {numbers.setdefault(name, len(numbers)): value for name, value in _sort_keys(run, row)}
        found.append((own, values))
    return {
        "tags": list(tags),
        "numbers": list(map(label, numbers)),
        "rows": [[own, [values.get(number) for number in range(len(numbers))]] for own, values in found],
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
    for step, names in (flags if isinstance(flags, dict) else {}).items():
        yield from (f"{step}: {name}" for name in names)


def _sort_keys(run: Run, row: Row) -> Iterator[tuple[str, float]]:
    scores = [each for _, every in checks(row) for each in every]
    if scores:
        yield "dropped share", sum(not each["kept"] for each in scores) / len(scores)
    column = run.caption_column(row)
    if column and isinstance(row[column], str):
        yield "caption length", len(WORD.findall(row[column]))
    yield from row_metrics(run, row)
