"""`comparison.html`: a table of runs, a plot of quality against cost, and captions side by side."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from scalecap.data.groups import batches
from scalecap.report.comparison import COSTS, Comparison
from scalecap.report.page import BLOCK_ROWS, Block, block, image_blocks, templates
from scalecap.report.thumbnails import thumbnails
from scalecap.run.folder import WORD, Row, Run
from scalecap.stats import label

MAX_ROWS = 500
"""Most rows shown side by side."""
TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]\s*|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’-]\w+)*\s*|[^\w\s]\s*|\s+"
)
"""A word, a punctuation mark, or a Chinese or Japanese character, with the white space after it."""

Segments = list[tuple[int, str]]
"""Pieces of text that are unchanged (0), added (1) or removed (-1)."""


def page(comparison: Comparison, folder: Path) -> str:
    """The HTML of the page; links are relative to `folder`."""
    jobs = [line.run.name for line in comparison.lines]
    rows = list(islice(comparison.baseline.rows(), MAX_ROWS)) if comparison.baseline else []
    template = templates().get_template("comparison.html.j2")
    return template.render(
        comparison=comparison,
        label=label,
        shown=len(rows),
        total=len(comparison.partners[comparison.baseline.name]) if comparison.baseline else 0,
        reports={run.name: link for run in comparison.runs if (link := _report(run, folder))},
        blocks=_blocks(comparison, jobs, rows),
    )


def _report(run: Run, folder: Path) -> str | None:
    """Relative link to a run's report; None if there is none below `folder`."""
    path = run.folder.resolve() / "report.html"
    if not path.is_file() or not path.is_relative_to(folder.resolve()):
        return None
    return quote(path.relative_to(folder.resolve()).as_posix())


def _blocks(comparison: Comparison, jobs: list[str], rows: list[Row]) -> Iterator[Block]:
    compared = _side_by_side(comparison, rows)
    for number, batch in enumerate(batches(compared, BLOCK_ROWS)):
        yield block(f"rows-{number}", batch)
    if comparison.baseline:
        yield from image_blocks(thumbnails(comparison.baseline, rows))
    yield block("index", _index(comparison, compared))
    yield block("chart", _chart(comparison, jobs))


def _chart(comparison: Comparison, jobs: list[str]) -> dict[str, Any]:
    """Data of the plot: by measure, each job's [mean, low, high]; by cost, each job's value."""
    lines = comparison.lines
    costs: dict[str, list[float | None]] = {name: [line.cost(name) for line in lines] for name in COSTS}
    costs["seconds"] = [line.seconds for line in lines]
    if "words" in comparison.names:
        words = [line.numbers.get("words") for line in lines]
        costs["words of the caption"] = [each.value.mean if each else None for each in words]
    names = dict.fromkeys([*comparison.table_names, *comparison.names])  # those of the table first
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


def _side_by_side(comparison: Comparison, own: list[Row]) -> list[dict[str, Any]]:
    """For each row of the baseline, the difference of every job's caption to the baseline's."""
    captions = []  # by run, its rows that are paired with these, by the indices of these
    for run in comparison.runs if own else []:
        paired = zip(comparison.partners[run.name].tolist(), run.rows(), strict=True)
        captions.append({index: row for index, row in paired if 0 <= index < len(own)})
    rows = []
    for index, row in enumerate(own):
        assert comparison.baseline
        first = _caption(comparison.baseline, row)
        jobs = []
        for run, partners in zip(comparison.runs, captions, strict=True):
            partner = partners.get(index)
            text = None if partner is None else _caption(run, partner)
            error = partner and partner.get("error")
            jobs.append(
                {
                    "job": run.name,
                    "segments": None if text is None else difference(first or "", text),
                    "same": text == first and run is not comparison.baseline,
                    "reason": str(error["message"]) if error else "" if partner else "this job lacks the row",
                    "numbers": [] if partner is None else _metrics(comparison, run, partner),
                }
            )
        rows.append({"name": comparison.baseline.image_name(row), "jobs": jobs})
    return rows


def _caption(run: Run, row: Row) -> str | None:
    column = run.caption_column(row)
    value = row.get(column) if column else None
    return value if isinstance(value, str) else None


def _metrics(comparison: Comparison, run: Run, row: Row) -> list[tuple[str, float]]:
    return [
        (label(name), round(count / of, 4))
        for name, (count, of) in run.numbers(row)
        if of and name in comparison.metrics
    ]


def difference(first: str, second: str) -> Segments:
    """The word-level difference from the first text to the second."""
    if first == second:
        return [(0, first)]
    one, other = TOKEN.findall(first), TOKEN.findall(second)
    matcher = SequenceMatcher(None, [*map(str.strip, one)], [*map(str.strip, other)], autojunk=False)
    found: Segments = []
    for tag, begin, end, start, stop in matcher.get_opcodes():
        if tag == "equal":
            found.append((0, "".join(other[start:stop])))
            continue
        found += [(-1, "".join(one[begin:end]))] if end > begin else []
        found += [(1, "".join(other[start:stop]))] if stop > start else []
    return found


def _index(comparison: Comparison, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Filters and sort keys of rows, in the form of `scalecap.report.run_page.index`."""
    tags = ["captions differ", "captions are the same", "failed or missing in a job"]
    metrics = list(map(label, comparison.metrics))
    numbers = ["changed words", *(f"spread of {name}" for name in metrics)]
    compared = []
    for row in rows:
        segments = [each["segments"] for each in row["jobs"]]
        present = [each for each in segments if each is not None]
        changed = sum(len(WORD.findall(text)) for each in present for sign, text in each if sign)
        differ = any(sign for each in present for sign, _ in each)
        own = [0 if differ else 1, *([2] if len(present) < len(segments) else [])]
        values: list[float | None] = [changed]
        for name in metrics:
            found = [value for each in row["jobs"] for known, value in each["numbers"] if known == name]
            values.append(max(found) - min(found) if found else None)
        compared.append([own, values])
    return {"tags": tags, "numbers": numbers, "rows": compared}
