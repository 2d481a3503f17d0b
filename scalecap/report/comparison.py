"""Compares runs: overrides, metrics with confidence intervals, paired differences and costs.

    scalecap compare DIR... [--baseline JOB] [--objective METRIC] [--to DIR]

reads the folders of runs or sweeps and writes `comparison.md`, `.csv` and `.html`; a sweep does so at its
end. Differences to the baseline are paired by image (`scalecap.report.pairing`).
"""

import argparse
import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from scalecap.messages import plural
from scalecap.report.page import format_number, shorten
from scalecap.report.pairing import UNPAIRED, keys, pair
from scalecap.report.row_numbers import RowNumbers
from scalecap.run.costs import recorded_usage
from scalecap.run.folder import FolderError, Run, read_runs
from scalecap.stats import Interval, difference, is_part, label, mean, named, parts
from scalecap.text.suggestions import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

COSTS = {"prompt tokens": "prompt", "generated tokens": "generated"}
"""Token columns (cached replies included), by their keys in `summary.json`."""


@dataclass(frozen=True)
class Number:
    """One measure of one run."""

    value: Interval
    difference: Interval | None = None
    """Paired difference to the baseline; None for the baseline itself."""
    best: bool = False

    @property
    def sign(self) -> str:
        """▲ or ▼ if the interval of the difference excludes zero, else empty."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return ""
        return "▲" if self.difference.mean > 0 else "▼"


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    run: Run
    numbers: dict[str, Number] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[int, int]:
        """Numbers of successful and failed rows."""
        rows = self.run.summary.get("rows", {})
        return int(rows.get("done", 0)), int(rows.get("failed", 0))

    def cost(self, name: str) -> int | None:
        """Tokens, those of cached replies and of an earlier run's rows included; None without a summary."""
        tokens = self.run.summary.get("tokens")
        key = COSTS[name]
        if tokens and self.run.summary.get("rows", {}).get("reused"):
            return self._recorded[key]
        return tokens and int(tokens.get(key, 0)) + int(tokens.get(f"{key}_reused", 0))

    @cached_property
    def _recorded(self) -> dict[str, int]:
        """The tokens of all rows in the journal, whichever run made them."""
        usages = recorded_usage(self.run.folder)
        return {key: sum(getattr(usage, f"{key}_tokens") for usage in usages) for key in COSTS.values()}

    @property
    def requests(self) -> tuple[int, int] | None:
        """Numbers of computed requests and of all, including cached ones; None without a summary."""
        requests = self.run.summary.get("requests")
        if not requests:
            return None
        total = int(requests["total"] if "total" in requests else requests["asked"])  # as 0.1.0 wrote it
        return total - int(requests["reused"]), total

    @property
    def seconds(self) -> float | None:
        """Wall-clock time of the whole run."""
        seconds = self.run.summary.get("seconds")
        return sum(seconds.values()) if seconds else None


class Comparison:
    """A table of runs.

    Args:
        baseline: name of the run that differences refer to; None is the first with rows.
        objective: the metric whose best run is marked, `-metric` to minimise; None marks the best of each.

    Raises:
        FolderError: no run has the baseline's name or the objective.
    """

    def __init__(
        self, runs: Sequence[Run], *, baseline: str | None = None, objective: str | None = None
    ) -> None:
        self.runs = list(runs)
        self.objective = objective
        self._objective_metric = (objective or "").lstrip("-")
        """The objective without its sign, as the runs name it."""
        self.baseline = self._baseline(baseline)
        self.partners = self._partners()
        self._means: dict[str, dict[str, Interval]] = {}
        self._differences: dict[str, dict[str, Interval | None]] = {}
        known: dict[str, None] = {}
        with ExitStack() as files:
            others = files.enter_context(closing(RowNumbers(self.baseline))) if self.baseline else None
            for run in self.runs:
                known |= dict.fromkeys(self._measure(run, others))
        for run in runs:  # metrics that are not means over rows, such as AUC
            for name, interval in run.summary.get("metrics", {}).items():
                self._means[run.name].setdefault(name, Interval(**interval))
        known |= dict.fromkeys(name for each in self._means.values() for name in each)
        self._objective_metric = named(self._objective_metric, known) or self._objective_metric
        self.names = self._names(known)
        if objective and self._objective_metric not in known and self.baseline:
            close = did_you_mean(objective, list(map(label, self.names)))
            raise FolderError(f"no run has objective={objective}{close}")
        self.lines = [Line(run, self._numbers(run)) for run in runs]

    def _baseline(self, name: str | None) -> Run | None:
        names = [run.name for run in self.runs]
        if name is not None and name not in names:
            raise FolderError(f"baseline={name}: there is no such run{did_you_mean(name, names)}")
        return next(
            (
                run
                for run in self.runs
                if (name is None or run.name == name)
                and any(True for row in run.rows() for _ in run.numbers(row))
            ),
            None,
        )

    def _measure(self, run: Run, others: RowNumbers | None) -> list[str]:
        """Sets the run's means, and their differences to the baseline's numbers; returns their names."""
        means, differences = self._means.setdefault(run.name, {}), self._differences.setdefault(run.name, {})
        with closing(RowNumbers(run)) as own:
            for name in own.names:
                rows, pairs = own.read(name)
                if found := mean(pairs):
                    means[name] = found
                if others is not None and run is not self.baseline:
                    other_rows, other_pairs = others.read(name)
                    partner = self.partners[run.name][rows]
                    both = np.isin(partner, other_rows)
                    same = other_pairs[np.searchsorted(other_rows, partner[both])]
                    differences[name] = difference(pairs[both], same)
            return own.names

    def _partners(self) -> dict[str, np.ndarray]:
        """By run, the index of the baseline row with the same image for each of its rows, or UNPAIRED."""
        if self.baseline is None:
            return {}
        own, data = keys(self.baseline), self.baseline.data_identity
        return {
            run.name: np.arange(len(own.id))
            if run is self.baseline
            else pair(keys(run), own, same_data=bool(data) and data == run.data_identity)
            for run in self.runs
        }

    def paired(self, run: Run) -> tuple[int, int, int]:
        """Numbers of rows in both the run and the baseline, only in the run, and only in the baseline."""
        if self.baseline is None:
            return 0, 0, 0
        partner = self.partners[run.name]
        both = int(np.count_nonzero(partner != UNPAIRED))
        return both, len(partner) - both, len(self.partners[self.baseline.name]) - both

    def _names(self, known: Iterable[str]) -> list[str]:
        """Names of measures: the objective, then metrics, then shares kept, then words."""
        return sorted(
            known,
            key=lambda name: (name != self._objective_metric, name not in self._measured, name == "words"),
        )

    @cached_property
    def _measured(self) -> set[str]:
        return {name for run in self.runs for name in run.summary.get("metrics", {})}

    @cached_property
    def metrics(self) -> list[str]:
        """Those of `table_names` that are metrics."""
        return [name for name in self.table_names if name in self._measured]

    @cached_property
    def table_names(self) -> list[str]:
        """The measures shown in tables.

        Breakdowns of metrics and metrics of intermediate captions are in the CSV file and the plot only.
        """
        before: set[str] = set()
        for run in self.runs:
            before.update((run.config.get("evaluate") or {}).get("before") or [])
        return [
            name
            for name in self.names
            if name == self._objective_metric or not (is_part(name) or before.intersection(parts(name)[1:2]))
        ]

    def _numbers(self, run: Run) -> dict[str, Number]:
        means, differences = self._means[run.name], self._differences[run.name]
        return {
            name: Number(means[name], differences.get(name), self._is_best(name, means[name].mean))
            for name in self.names
            if name in means
        }

    def _is_best(self, name: str, value: float) -> bool:
        if name != self._objective_metric if self._objective_metric else name not in self.metrics:
            return False
        means = [each[name].mean for each in self._means.values() if name in each]
        better = self._better(name)
        if self.objective:
            better = "lower" if self.objective.startswith("-") else "higher"
        return len(means) > 1 and better != "neither" and value == (min if better == "lower" else max)(means)

    def _better(self, name: str) -> str:
        """`higher`, `lower` or `neither`, as the metric's stage declares it; older runs do not say."""
        step, *rest = parts(name)
        declared_by_run = [run.summary.get("better", {}) for run in self.runs]
        declared = next((each[step] for each in declared_by_run if step in each), None)
        return "neither" if declared is None else str(declared.get(rest[-1] if rest else "", "higher"))

    @cached_property
    def overrides(self) -> list[str]:
        """The keys in which the runs differ."""
        keys = dict.fromkeys(key for run in self.runs for key in run.overrides)
        return [key for key in keys if len({run.overrides.get(key) for run in self.runs}) > 1]

    @property
    def shared(self) -> list[str]:
        """The overrides that all runs have in common."""
        first = self.runs[0].overrides if self.runs else {}
        return [f"{key}={value}" for key, value in first.items() if key not in self.overrides]

    @property
    def notes(self) -> list[str]:
        """Footnotes of the table."""
        lowest = sorted({parts(name)[-1] for name in self.metrics if self._better(name) == "lower"})
        best = (
            f"★ marks the {'lowest' if self.objective.startswith('-') else 'highest'}"
            f" {self.objective.lstrip('-')}."
            if self.objective
            else "★ marks the highest of each metric"
            + (f", the lowest of {', '.join(lowest)}." if lowest else ".")
        )
        lines = ["Intervals are 95 % bootstrap intervals over rows."]
        if self.baseline and len(self.runs) > 1:
            lines.append(
                f"Δ is the paired difference to job {self.baseline.name} over the images that both have;"
                " ▲ and ▼ mark intervals that exclude zero."
            )
            lines += self._unpaired()
        lines += [best] if self.metrics or self.objective else []
        lines.append("Tokens include those of cached requests; seconds are wall-clock time.")
        if left := len(self.names) - len(self.table_names):
            lines.append(f"{left:,} more (breakdowns and intermediate captions) are in comparison.csv.")
        if self.shared:
            lines.append(f"All runs: {' '.join(self.shared)}")
        return lines

    def _unpaired(self) -> Iterator[str]:
        assert self.baseline is not None
        for line in self.lines:
            both, own, others = self.paired(line.run)
            if not (own + both):
                continue
            if not both:
                yield (
                    f"Job {line.run.name} has no row in common with job {self.baseline.name}: they read"
                    " different data, and no image occurs exactly once in both."
                )
            elif own or others:
                yield (
                    f"Job {line.run.name}: {plural(both, 'row')} paired with job {self.baseline.name};"
                    f" {own:,} of its rows and {others:,} of the baseline's are not."
                )

    def save(self, folder: Path) -> str:
        """Writes `comparison.md`, `.csv` and `.html` to `folder`; returns the text for the terminal."""
        from scalecap.report.comparison_page import page

        parts = {"md": self.markdown(), "csv": self.csv(), "html": page(self, folder)}
        lines = [self.screen()]
        for suffix, text in parts.items():
            path = folder / f"comparison.{suffix}"
            part = path.with_name(f"{path.name}.part")
            part.write_text(text, encoding="utf-8", newline="")
            part.replace(path)
            lines.append(f"  {path}")
        return "\n".join(lines)

    def _cells(self, line: Line, names: Sequence[str]) -> Iterator[str]:
        yield line.run.name + (" (baseline)" if line.run is self.baseline and len(self.runs) > 1 else "")
        yield from (shorten(line.run.overrides.get(key, "")) for key in self.overrides)
        done, failed = line.rows
        status = "" if line.run.status == "finished" else f"{line.run.status}: {line.run.reason}".rstrip(": ")
        counted = f"{done:,}" + (f", {failed:,} failed" if failed else "")
        yield status if status and not done else counted + (f" ({status})" if status else "")
        yield from (_format_cell(line.numbers.get(name)) for name in names)
        yield from ("" if (cost := line.cost(name)) is None else f"{cost:,}" for name in COSTS)
        yield f"{line.requests[0]:,} of {line.requests[1]:,} requests" if line.requests else ""
        yield "" if line.seconds is None else f"{line.seconds:.1f}"

    def screen(self) -> str:
        """The table for the terminal, with as many measures as fit its width, at least one."""
        console = Console(file=io.StringIO(), color_system=None)
        screen = Console()  # a pipe has no width
        known = screen.is_terminal or "COLUMNS" in os.environ
        console.width = max(80, screen.width) if known else 120
        wide, shown = console.options.update(width=10_000), len(self.table_names)
        while shown > 1 and Measurement.get(console, wide, self._table(shown)).maximum > console.width:
            shown -= 1
        console.print(self._table(shown))
        hidden = [label(name) for name in self.table_names[shown:]]
        more = [f"Also in the files: {', '.join(hidden)}."] if hidden else []
        assert isinstance(console.file, io.StringIO)
        text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
        return "\n".join([text, *self.notes, *more])

    def _table(self, numbers: int) -> Table:
        table = Table(title="Comparison", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        last = [key.replace("/", ".").rpartition(".")[2] for key in self.overrides]
        header = last if len(set(last)) == len(last) else self.overrides
        for head in ["job", *header, "rows"]:
            table.add_column(Text(head), overflow="fold")
        for head in [*map(label, self.table_names[:numbers]), "tokens", "seconds"]:
            table.add_column(Text(head), justify="right", overflow="fold")
        for line in self.lines:
            name, *cells = self._cells(line, self.table_names[:numbers])
            middle = cells[len(self.overrides) + 1 : -4]
            costs = [cost for each in COSTS if (cost := line.cost(each)) is not None]
            tokens = f"{sum(costs):,}" if costs else ""
            cells = [name, *cells[: len(self.overrides) + 1], *middle, tokens, cells[-1]]
            table.add_row(*(Text(cell.replace(" (", "\n(").replace(" Δ", "\nΔ")) for cell in cells))
        return table

    def markdown(self) -> str:
        """The table in Markdown."""
        header = ["job", *self.overrides, "rows", *map(label, self.table_names), *COSTS]
        header += ["computed", "seconds"]
        lines = ["# Comparison", "", _row(header), "| --- " * len(header) + "|"]
        lines += [_row(self._cells(line, self.table_names)) for line in self.lines]
        return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in self.notes), ""])

    def numbers(self) -> Iterator[list[Any]]:
        """A header, then one line of unrounded numbers per run; interval bounds are separate columns."""
        ends = ("", " low", " high", " rows", " difference", " difference low", " difference high", " best")
        header = ["job", "folder", "status", "reason", *self.overrides, "rows done", "rows failed"]
        header += ["rows paired", "rows without a partner"]
        header += [label(name) + end for name in self.names for end in ends]
        yield [*header, *COSTS, "requests computed", "requests", "seconds"]
        for line in self.lines:
            cells: list[Any] = [line.run.name, line.run.folder, line.run.status, line.run.reason]
            cells += [line.run.overrides.get(key) for key in self.overrides]
            cells += [*line.rows, *self.paired(line.run)[:2]]
            for name in self.names:
                number = line.numbers.get(name)
                change = number.difference[:3] if number and number.difference else (None,) * 3
                cells += [*number.value, *change, number.best] if number else [None] * len(ends)
            yield [*cells, *map(line.cost, COSTS), *(line.requests or (None, None)), line.seconds]

    def csv(self) -> str:
        """`numbers` as CSV, safe to open in a spreadsheet."""
        file = io.StringIO()
        csv.writer(file).writerows([_escape_formula(cell) for cell in cells] for cells in self.numbers())
        return file.getvalue()


def compare(
    runs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    baseline: str | None = None,
    objective: str | None = None,
) -> "pd.DataFrame":
    """Compares runs; the columns are those of `comparison.csv`.

    Args:
        runs: folders of runs or of sweeps, or a single one.
        baseline: name of the run that paired differences refer to; None is the first.
        objective: the metric whose best run is marked; `-metric` to minimise.

    Returns:
        A frame with one row per run: the overrides that differ, and for each measure its mean, 95 % interval
        (`low`, `high`), number of rows, and paired difference to the baseline.

    Raises:
        FolderError: a folder holds no run, or no run is named `baseline`.
    """
    import pandas as pd

    folders = [runs] if isinstance(runs, str | os.PathLike) else runs
    header, *lines = Comparison(
        read_runs([Path(each) for each in folders]), baseline=baseline, objective=objective
    ).numbers()
    return pd.DataFrame(lines, columns=header)


def _format_cell(number: Number | None) -> str:
    if number is None:
        return ""
    text = f"{'★ ' if number.best else ''}{format_number(number.value.mean)} ({_range(number.value)})"
    if number.difference:
        sign = "+" if number.difference.mean >= 0 else ""
        change = f"{sign}{format_number(number.difference.mean)} ({_range(number.difference)})"
        text += f" Δ {change} {number.sign}"
    return text.rstrip()


def _range(interval: Interval) -> str:
    return f"{format_number(interval.low)} to {format_number(interval.high)}"


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """The text with Markdown syntax escaped, on one line."""
    marks = str.maketrans({each: f"\\{each}" for each in "\\`*_[]|<>"})
    return " ".join(text.translate(marks).split())


def _escape_formula(cell: Any) -> Any:
    """The cell, quoted if a spreadsheet would evaluate it as a formula."""
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    text = cell if isinstance(cell, str | int | None) else str(cell)
    return f"'{text}" if isinstance(text, str) and text[:1] in tuple("=+-@\t\r") else text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap compare", description="Compares runs: writes comparison.md, .csv and .html."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folder of a run or a sweep")
    parser.add_argument(
        "--baseline", metavar="JOB", help="the run that differences refer to (default: the first)"
    )
    parser.add_argument(
        "--objective",
        metavar="METRIC",
        help="metric whose best run is marked; --objective=-METRIC to minimise",
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="output folder (default: a single DIR itself, else the current one)",
    )
    arguments = parser.parse_args()
    to = arguments.to or (arguments.runs[0] if len(arguments.runs) == 1 else Path())
    try:
        if empty := [str(each) for each in arguments.runs if not read_runs([each])]:
            raise FolderError(f"no run found in {', '.join(empty)}")
        runs = read_runs(arguments.runs)
        objective = arguments.objective or runs[0].config.get("objective")
        to.mkdir(parents=True, exist_ok=True)
        print(Comparison(runs, baseline=arguments.baseline, objective=objective).save(to))
    except (FolderError, OSError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
