"""`comparison.html`: the table of runs, quality against cost, and captions side by side."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from scalecap.report.page import Block, batches, block, picture_blocks, templates
from scalecap.report.pictures import thumbnails
from scalecap.run.folder import WORD, Row, Run
from scalecap.stats import label

if TYPE_CHECKING:
    from scalecap.report.comparison import Comparison

MOST = 500
"""Rows shown side by side; of a larger data set the first so many."""
PIECE = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]\s*|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’-]\w+)*\s*|[^\w\s]\s*|\s+"
)
"""A word, a mark, or in Chinese and Japanese a character, with the white space after it."""

Segments = list[tuple[int, str]]


def page(comparison: "Comparison", folder: Path) -> str:
    """The whole page as HTML, for a file in `folder`."""
    jobs = [line.run.name for line in comparison.lines]
    rows = list(islice(comparison.baseline.rows(), MOST)) if comparison.baseline else []
    template = templates().get_template("comparison.html.j2")
    return template.render(
        comparison=comparison,
        label=label,
        shown=len(rows),
        total=max((sum(line.rows) for line in comparison.lines), default=0),
        reports={run.name: link for run in comparison.runs if (link := _report(run, folder))},
        blocks=_blocks(comparison, jobs, rows),
    )


def _report(run: Run, folder: Path) -> str | None:
    """Where a run's own page is as seen from `folder`; None when there is none below it."""
    path = run.folder.resolve() / "report.html"
    if not path.is_file() or not path.is_relative_to(folder.resolve()):
        return None
    return quote(path.relative_to(folder.resolve()).as_posix())


def _blocks(comparison: "Comparison", jobs: list[str], rows: list[Row]) -> Iterator[Block]:
    told = _side_by_side(comparison, rows)
    for number, batch in enumerate(batches(told)):
        yield block(f"rows-{number}", batch)
    if comparison.baseline:
        yield from picture_blocks(thumbnails(comparison.baseline, rows))
    yield block("index", _index(comparison, told))
    yield block("chart", _chart(comparison, jobs))


def _chart(comparison: "Comparison", jobs: list[str]) -> dict[str, Any]:
    """Points: by number the mean and both ends of each job, by cost its value."""
    lines = comparison.lines
    costs: dict[str, list[float | None]] = {
        name: [line.cost(name) for line in lines] for name in comparison.costs
    }
    costs["seconds"] = [line.seconds for line in lines]
    if "words" in comparison.names:
        words = [line.numbers.get("words") for line in lines]
        costs["words of the caption"] = [each.value.mean if each else None for each in words]
    names = dict.fromkeys([*comparison.told, *comparison.names])  # the plot begins with what the table tells
    return {
        "jobs": jobs,
        "numbers": {
            label(name): [
                list(line.numbers[name].value[:3]) if name in line.numbers else None for line in lines
            ]
            for name in names
        },
        "costs": costs,
    }


def _partners(comparison: "Comparison", run: Run, most: int) -> dict[int, Row]:
    """The run's rows of the baseline's first pictures, by the places of those."""
    rows = zip(comparison.partners[run.name].tolist(), run.rows(), strict=True)
    return {place: row for place, row in rows if 0 <= place < most}


def _side_by_side(comparison: "Comparison", own: list[Row]) -> list[dict[str, Any]]:
    """For each row of the baseline, every job's caption as it differs from the baseline's."""
    captions = [_partners(comparison, run, len(own)) for run in comparison.runs] if own else []
    rows = []
    for place, row in enumerate(own):
        assert comparison.baseline
        first = _caption(comparison.baseline, row)
        told = []
        for run, theirs in zip(comparison.runs, captions, strict=True):
            there = theirs.get(place)
            text = None if there is None else _caption(run, there)
            error = there and there.get("error")
            told.append(
                {
                    "job": run.name,
                    "segments": None if text is None else difference(first or "", text),
                    "same": text == first and run is not comparison.baseline,
                    "why": str(error["message"]) if error else "" if there else "the job has no such row",
                    "numbers": [] if there is None else _numbers(comparison, run, there),
                }
            )
        rows.append({"name": comparison.baseline.picture_name(row), "jobs": told})
    return rows


def _caption(run: Run, row: Row) -> str | None:
    column = run.caption_column(row)
    value = row.get(column) if column else None
    return value if isinstance(value, str) else None


def _numbers(comparison: "Comparison", run: Run, row: Row) -> list[tuple[str, float]]:
    return [
        (label(name), round(count / of, 4))
        for name, (count, of) in run.numbers(row)
        if of and name in comparison.metrics
    ]


def difference(first: str, second: str) -> Segments:
    """How the second text differs: pieces that both have (0), that it adds (1), that it lacks (-1)."""
    if first == second:
        return [(0, first)]
    one, other = PIECE.findall(first), PIECE.findall(second)
    matcher = SequenceMatcher(None, [*map(str.strip, one)], [*map(str.strip, other)], autojunk=False)
    found: Segments = []
    for tag, begin, end, start, stop in matcher.get_opcodes():
        if tag == "equal":
            found.append((0, "".join(other[start:stop])))
            continue
        found += [(-1, "".join(one[begin:end]))] if end > begin else []
        found += [(1, "".join(other[start:stop]))] if stop > start else []
    return found


def _index(comparison: "Comparison", rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What rows are filtered and sorted by, as `scalecap.report.run_page.index`."""
    tags = ["captions differ", "captions are the same", "failed or missing in a job"]
    metrics = list(map(label, comparison.metrics))
    numbers = ["changed words", *(f"spread of {name}" for name in metrics)]
    told = []
    for row in rows:
        segments = [each["segments"] for each in row["jobs"]]
        present = [each for each in segments if each is not None]
        changed = sum(len(WORD.findall(text)) for each in present for sign, text in each if sign)
        own = [0 if changed else 1, *([2] if len(present) < len(segments) else [])]
        values: list[float | None] = [changed]
        for name in metrics:
            found = [value for each in row["jobs"] for known, value in each["numbers"] if known == name]
            values.append(max(found) - min(found) if found else None)
        told.append([own, values])
    return {"tags": tags, "numbers": numbers, "rows": told}
