"""Runs held against each other: what each was asked, what came out, how sure the differences are.

    scalecap compare DIR... [--baseline JOB] [--objective METRIC] [--to DIR]

reads the folders of runs, or of sweeps, and writes `comparison.md`, `.csv` and `.html`; a sweep does
it by itself. Differences to the baseline are paired, picture by picture (see `scalecap.report.pairing`):
only rows that both have count.
"""

import argparse
import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
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

from scalecap.report.page import brief, shown
from scalecap.report.pairing import ALONE, keys, pair
from scalecap.run.folder import FolderError, Run, read_runs
from scalecap.stats import Interval, Pair, difference, is_part, label, mean, named, parts
from scalecap.text.suggestions import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

COSTS = {
    "prompt tokens": "prompt",
    "generated tokens": "generated",
}
"""Columns of tokens, as if no reply had been reused, by their names in `summary.json`."""

LOWER = frozenset(
    ["wrong", "chair_i", "chair_s", "repetition", "unread", "unanswered", "cut", "calibration_error"]
)
"""Measures of which the lowest is best."""
NEITHER = frozenset(["words", "sentences", "statements", "best_threshold"])


@dataclass(frozen=True)
class Number:
    """One number of one run."""

    value: Interval
    difference: Interval | None = None
    """To the baseline, over the rows that both have; None for the baseline itself."""
    best: bool = False

    @property
    def sign(self) -> str:
        """▲ or ▼ when the whole interval of the difference lies on one side of zero."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return ""
        return "▲" if self.difference.mean > 0 else "▼"


@dataclass(frozen=True)
class Line:
    """One run's line of the table."""

    run: Run
    numbers: dict[str, Number] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[int, int]:
        """Done and failed."""
        told = self.run.summary.get("rows", {})
        return int(told.get("done", 0)), int(told.get("failed", 0))

    def cost(self, name: str) -> int | None:
        """Tokens as if no reply had been reused; None without a summary."""
        tokens = self.run.summary.get("tokens")
        key = COSTS[name]
        return tokens and int(tokens.get(key, 0)) + int(tokens.get(f"{key}_reused", 0))

    @property
    def requests(self) -> tuple[int, int] | None:
        """Computed in this run, and asked."""
        told = self.run.summary.get("requests")
        return told and (int(told["asked"]) - int(told["reused"]), int(told["asked"]))

    @property
    def seconds(self) -> float | None:
        """Of the whole run, as measured."""
        told = self.run.summary.get("seconds")
        return sum(told.values()) if told else None


class Comparison:
    """A table of runs.

    Args:
        baseline: name of the run that others are held against; None is the first with rows.
        objective: the metric whose best run is marked, `-metric` where lower is better; None marks
            the best of every metric.

    Raises FolderError for a baseline or objective that none of the runs has.
    """

    def __init__(
        self, runs: Sequence[Run], *, baseline: str | None = None, objective: str | None = None
    ) -> None:
        self.runs = list(runs)
        self.objective = objective
        self._aim = (objective or "").lstrip("-")
        """The objective's metric, as the runs name it."""
        self.costs = tuple(COSTS)
        values = {run.name: _values(run) for run in runs}
        self._means = {
            run: {name: found for name, pairs in each.items() if (found := mean(list(pairs.values())))}
            for run, each in values.items()
        }
        for run in runs:  # what only all rows together have
            for name, told in run.summary.get("metrics", {}).items():
                self._means[run.name].setdefault(name, Interval(**told))
        self.baseline = self._baseline(baseline, values)
        known = {name for each in values.values() for name in each}.union(*self._means.values())
        self._aim = named(self._aim, known) or self._aim
        self.partners = self._partners()
        self.names = self._names(values)
        if objective and self._aim not in known and self.baseline:
            close = did_you_mean(objective, list(map(label, self.names)))
            raise FolderError(f"no run has objective={objective}{close}")
        self.lines = [Line(run, self._numbers(run, values)) for run in runs]

    def _baseline(self, name: str | None, values: dict[str, Any]) -> Run | None:
        if name is not None and name not in values:
            raise FolderError(f"there is no run {name!r}{did_you_mean(name, values)}")
        return next(
            (run for run in self.runs if values[run.name] and (name is None or run.name == name)), None
        )

    def _partners(self) -> dict[str, np.ndarray]:
        """By run, for each of its rows the place of the baseline's row of the same picture, or ALONE."""
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
        """Rows that the run and the baseline both have, that the run alone has, and the baseline alone."""
        if self.baseline is None:
            return 0, 0, 0
        partner = self.partners[run.name]
        both = int(np.count_nonzero(partner != ALONE))
        return both, len(partner) - both, len(self.partners[self.baseline.name]) - both

    def _names(self, values: dict[str, dict[str, dict[int, Pair]]]) -> list[str]:
        """The numbers, the objective first, then metrics, then what every run has."""
        found = dict.fromkeys(name for each in values.values() for name in each)
        found |= dict.fromkeys(name for each in self._means.values() for name in each)
        metrics = {name for run in self.runs for name in run.summary.get("metrics", {})}
        return sorted(found, key=lambda name: (name != self._aim, name not in metrics, name == "words"))

    @cached_property
    def metrics(self) -> list[str]:
        """Those of the told numbers that are metrics of the runs."""
        known = {name for run in self.runs for name in run.summary.get("metrics", {})}
        return [name for name in self.told if name in known]

    @cached_property
    def told(self) -> list[str]:
        """The numbers that tables have room for.

        Left to the CSV file and the plot are parts of metrics (a sort of fact) and captions before the one
        that is judged.
        """
        before: set[str] = set()
        for run in self.runs:
            before.update((run.config.get("evaluate") or {}).get("before") or [])
        return [
            name
            for name in self.names
            if name == self._aim or not (is_part(name) or before.intersection(parts(name)[1:2]))
        ]

    def _numbers(self, run: Run, values: dict[str, dict[str, dict[int, Pair]]]) -> dict[str, Number]:
        found = {}
        for name in self.names:
            own, value = values[run.name].get(name, {}), self._means[run.name].get(name)
            if not value:
                continue
            apart = None
            if self.baseline is not None and run is not self.baseline:
                other = values[self.baseline.name].get(name, {})
                partner = self.partners[run.name]
                both = [row for row in own if partner[row] in other]
                apart = difference([own[row] for row in both], [other[partner[row]] for row in both])
            found[name] = Number(value, apart, self._is_best(name, value.mean))
        return found

    def _is_best(self, name: str, value: float) -> bool:
        if name != self._aim if self._aim else name not in self.metrics:
            return False
        means = [each[name].mean for each in self._means.values() if name in each]
        measure = parts(name)[-1]
        low = self.objective.startswith("-") if self.objective else measure in LOWER
        if not self.objective and measure in NEITHER:
            return False
        return len(means) > 1 and value == (min if low else max)(means)

    @cached_property
    def overrides(self) -> list[str]:
        """The keys in which the runs differ."""
        keys = dict.fromkeys(key for run in self.runs for key in run.overrides)
        return [key for key in keys if len({run.overrides.get(key) for run in self.runs}) > 1]

    @property
    def shared(self) -> list[str]:
        """What was asked of all of them."""
        first = self.runs[0].overrides if self.runs else {}
        return [f"{key}={value}" for key, value in first.items() if key not in self.overrides]

    @property
    def notes(self) -> list[str]:
        """How the table is read."""
        best = (
            f"★ marks the {'lowest' if self.objective.startswith('-') else 'highest'}"
            f" {self.objective.lstrip('-')}."
            if self.objective
            else f"★ marks the highest of each metric, the lowest of {', '.join(sorted(LOWER))}."
        )
        lines = ["Intervals hold 95 % of bootstrap draws over rows."]
        if self.baseline and len(self.runs) > 1:
            lines.append(
                f"Δ is the difference to job {self.baseline.name} over the pictures of which both have the"
                " number, ▲ or ▼ when its interval leaves zero out."
            )
            lines += self._unpaired()
        lines += [best] if self.metrics or self.objective else []
        lines.append("Tokens are those of all requests, reused ones too; seconds are as measured.")
        if left := len(self.names) - len(self.told):
            lines.append(f"{left:,} more numbers (of parts, and of captions before) are in comparison.csv.")
        if self.shared:
            lines.append(f"All: {' '.join(self.shared)}")
        return lines

    def _unpaired(self) -> Iterator[str]:
        assert self.baseline is not None
        for line in self.lines:
            both, own, others = self.paired(line.run)
            if not (own + both):
                continue
            if not both:
                yield (
                    f"Job {line.run.name} has no row that can be paired with one of job {self.baseline.name}:"
                    " they read other data, and no picture is there once in both."
                )
            elif own or others:
                yield (
                    f"Job {line.run.name}: {both:,} rows are paired; {own:,} of its own and {others:,} of job"
                    f" {self.baseline.name}'s have no partner."
                )

    def save(self, folder: Path) -> str:
        """Writes `comparison.md`, `.csv` and `.html` in `folder`; what to print on a terminal."""
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
        yield from (brief(line.run.overrides.get(key, "")) for key in self.overrides)
        done, failed = line.rows
        status = "" if line.run.status == "finished" else f"{line.run.status}: {line.run.reason}".rstrip(": ")
        counted = f"{done:,}" + (f", {failed:,} failed" if failed else "")
        yield status if status and not done else counted + (f" ({status})" if status else "")
        yield from (_shown(line.numbers.get(name)) for name in names)
        yield from ("" if (cost := line.cost(name)) is None else f"{cost:,}" for name in COSTS)
        yield f"{line.requests[0]:,} of {line.requests[1]:,} requests" if line.requests else ""
        yield "" if line.seconds is None else f"{line.seconds:.1f}"

    def screen(self) -> str:
        """The table in brief, for a terminal: as many numbers as its width takes, at least one."""
        console = Console(file=io.StringIO(), color_system=None)
        screen = Console()  # a pipe has no width of its own
        known = screen.is_terminal or "COLUMNS" in os.environ
        console.width = max(80, screen.width) if known else 120
        wide, shown = console.options.update(width=10_000), len(self.told)
        while shown > 1 and Measurement.get(console, wide, self._table(shown)).maximum > console.width:
            shown -= 1
        console.print(self._table(shown))
        hidden = [label(name) for name in self.told[shown:]]
        more = [f"In the files, too: {', '.join(hidden)}."] if hidden else []
        assert isinstance(console.file, io.StringIO)
        text = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
        return "\n".join([text, *self.notes, *more])

    def _table(self, numbers: int) -> Table:
        table = Table(title="Comparison", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        last = [key.replace("/", ".").rpartition(".")[2] for key in self.overrides]
        heads = last if len(set(last)) == len(last) else self.overrides
        for head in ["job", *heads, "rows"]:
            table.add_column(Text(head), overflow="fold")
        for head in [*map(label, self.told[:numbers]), "tokens", "seconds"]:
            table.add_column(Text(head), justify="right", overflow="fold")
        for line in self.lines:
            name, *cells = self._cells(line, self.told[:numbers])
            middle = cells[len(self.overrides) + 1 : -4]
            costs = [cost for each in COSTS if (cost := line.cost(each)) is not None]
            tokens = f"{sum(costs):,}" if costs else ""
            cells = [name, *cells[: len(self.overrides) + 1], *middle, tokens, cells[-1]]
            table.add_row(*(Text(cell.replace(" (", "\n(").replace(" Δ", "\nΔ")) for cell in cells))
        return table

    def markdown(self) -> str:
        """The told numbers as a table in Markdown."""
        heads = ["job", *self.overrides, "rows", *map(label, self.told), *COSTS, "computed", "seconds"]
        lines = ["# Comparison", "", _row(heads), "| --- " * len(heads) + "|"]
        lines += [_row(self._cells(line, self.told)) for line in self.lines]
        return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in self.notes), ""])

    def numbers(self) -> Iterator[list[Any]]:
        """The columns' names, then each run's numbers, unrounded; interval ends are columns of their own."""
        ends = ("", " low", " high", " rows", " difference", " difference low", " difference high", " best")
        heads = ["job", "folder", "status", "reason", *self.overrides, "rows done", "rows failed"]
        heads += ["rows paired", "rows without a partner"]
        heads += [label(name) + end for name in self.names for end in ends]
        yield [*heads, *COSTS, "requests computed", "requests", "seconds"]
        for line in self.lines:
            cells: list[Any] = [line.run.name, line.run.folder, line.run.status, line.run.reason]
            cells += [line.run.overrides.get(key) for key in self.overrides]
            cells += [*line.rows, *self.paired(line.run)[:2]]
            for name in self.names:
                number = line.numbers.get(name)
                apart = number.difference[:3] if number and number.difference else (None,) * 3
                cells += [*number.value, *apart, number.best] if number else [None] * len(ends)
            yield [*cells, *map(line.cost, COSTS), *(line.requests or (None, None)), line.seconds]

    def csv(self) -> str:
        """`numbers` as a file that a spreadsheet opens."""
        file = io.StringIO()
        csv.writer(file).writerows([_inert(cell) for cell in cells] for cells in self.numbers())
        return file.getvalue()


def compare(
    runs: Iterable[str | os.PathLike[str]], *, baseline: str | None = None, objective: str | None = None
) -> "pd.DataFrame":
    """Runs held against each other: a row a run, as `comparison.csv` has them.

    Args:
        runs: folders of runs, or of sweeps.
        baseline: name of the run that differences are to, row by row; None is the first.
        objective: the metric whose best run is marked; `-metric` where lower is better.

    Returns:
        A frame with the overrides that differ, and for each number its mean, its 95 % interval (`low`,
        `high`), the rows that have it, and the paired difference to the baseline.

    Raises:
        FolderError: a folder holds no run, or no run is named `baseline`.
    """
    import pandas as pd

    heads, *lines = Comparison(
        read_runs([Path(each) for each in runs]), baseline=baseline, objective=objective
    ).numbers()
    return pd.DataFrame(lines, columns=heads)


def _values(run: Run) -> dict[str, dict[int, Pair]]:
    """By number, then by the row's place: what the row adds to it."""
    found: dict[str, dict[int, Pair]] = {}
    for place, row in enumerate(run.rows()):
        for name, value in run.numbers(row):
            found.setdefault(name, {})[place] = value
    return found


def _shown(number: Number | None) -> str:
    if number is None:
        return ""
    text = f"{'★ ' if number.best else ''}{shown(number.value.mean)} ({_range(number.value)})"
    if number.difference:
        sign = "+" if number.difference.mean >= 0 else ""
        text += (
            f" Δ {sign}{shown(number.difference.mean)} ({_range(number.difference)}) {number.sign}".rstrip()
        )
    return text


def _range(interval: Interval) -> str:
    return f"{shown(interval.low)} to {shown(interval.high)}"


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Text of a run stays text in Markdown."""
    marks = str.maketrans({each: f"\\{each}" for each in "\\`*_[]|<>"})
    return " ".join(text.translate(marks).split())


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    text = cell if isinstance(cell, str | int | None) else str(cell)
    return f"'{text}" if isinstance(text, str) and text[:1] in tuple("=+-@\t\r") else text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap compare", description="A table of runs: comparison.md, .csv and .html."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folder of a run or of a sweep")
    parser.add_argument("--baseline", metavar="JOB", help="what others are held against (the first)")
    parser.add_argument(
        "--objective", metavar="METRIC", help="mark the best of this one; --objective=-METRIC: the lowest"
    )
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="where to write (DIR if there is one, else here)"
    )
    arguments = parser.parse_args()
    to = arguments.to or (arguments.runs[0] if len(arguments.runs) == 1 else Path())
    try:
        if empty := [str(each) for each in arguments.runs if not read_runs([each])]:
            raise FolderError(f"no run in {', '.join(empty)}")
        runs = read_runs(arguments.runs)
        objective = arguments.objective or runs[0].config.get("objective")
        to.mkdir(parents=True, exist_ok=True)
        print(Comparison(runs, baseline=arguments.baseline, objective=objective).save(to))
    except (FolderError, OSError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
