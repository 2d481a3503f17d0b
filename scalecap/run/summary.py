"""A run in numbers: `summary.json` and the last screen."""

import json
import math
import os
import platform
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from scalecap.config.compose import quoted
from scalecap.config.exports import WriteSettings
from scalecap.data.sources import json_safe
from scalecap.data.writer import WriteResult
from scalecap.interpreter.dispatch import RunUsage
from scalecap.messages import MessageCounts, plural
from scalecap.rows import Record
from scalecap.run.costs import CostEstimate
from scalecap.stages import Overall
from scalecap.stats import Interval, Mean, by_step, named

LIBRARIES = ("scalecap", "torch", "transformers", "vllm", "aiohttp", "datasets", "hydra-core")

MAX_ERRORS_SHOWN = 3
"""Kinds of error that the screen shows."""
MAX_REASONS_SHOWN = 10
"""Reasons that a note gives for rows or images missing in a file."""
CONFIDENT_MASS = 0.9
"""Median probability of all options together from which the screen does not mention it."""

EXPORTS = {
    "dataset": "the same, for datasets.load_dataset",
    "webdataset": "tars of images and JSON, for the webdataset library",
    "sidecars": "one file per image",
}
"""Folders of a run, and what they hold."""
PLUGIN = "made by another package"

Status = Literal["finished", "interrupted", "stopped", "preview"]
"""`stopped`: too many rows failed, a limit was reached, or the engine or the data gave up."""


@dataclass
class Summary:
    """A run in numbers.

    Rows, checks, flags, metrics and errors are of all rows in the folder; usage and seconds only of this run.
    """

    output: Path
    command: str
    status: Status = "finished"
    reason: str = ""
    """Why it stopped."""
    next: Sequence[str] = ()
    """Lines about what to do next, in place of the usual ones."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about the captions."""
    done: int = 0
    failed: int = 0
    total: int | None = None
    """Rows of the data, where that is known."""
    reused: int = 0
    """Rows that an earlier run in the same folder finished, part of `done`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: check, load, rows, write."""
    kept: Counter[str] = field(default_factory=Counter)
    """By step: texts that a check kept."""
    dropped: Counter[str] = field(default_factory=Counter)
    promises: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By check: its threshold, and the guarantee of its calibration."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """By step: checks whose reply was none of the options."""
    masses: dict[str, Counter[float]] = field(default_factory=dict)
    """By step: histogram of the probability that all options have together, rounded to 0.01."""
    measured: dict[str, Mean] = field(default_factory=dict)
    """By metric (`column`, or `column.name`), over the rows that have it."""
    overall: dict[str, Interval] = field(default_factory=dict)
    """By metric: numbers that are computed over all rows together."""
    better: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By metric step: its measures of which the highest is not the best, `lower` or `neither`."""
    flags: dict[str, Counter[str]] = field(default_factory=dict)
    """By step and flag: number of rows."""
    over_limit: Counter[str] = field(default_factory=Counter)
    """By step: items (texts, questions, samples …) skipped by a limit or the request budget."""
    errors: MessageCounts = field(default_factory=MessageCounts)
    """By step and kind; messages that differ only in names, paths or numbers count as one."""
    usage: RunUsage = field(default_factory=RunUsage)
    models: dict[str, str] = field(default_factory=dict)
    """By role: the identity of the engine."""
    estimate: CostEstimate | None = None
    """What all rows of the data take, extrapolated from the finished ones."""
    cost: float | None = None
    """Cost of the tokens computed, in the currency of `engine.price`; None without prices."""
    left_out: int | None = None
    """Rows that `write.select` excluded from all files but `captions.jsonl`; None without `select`."""
    exports: Sequence[str] = ("dataset",)
    """Files and folders of the rows besides `captions.jsonl`."""
    report: Path | None = None
    """Path of `report.html`, if it was written."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the phase."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def add_overall(
        self, records: Callable[[], Iterable[Record]], overall: Mapping[str, tuple[Overall, Sequence[str]]]
    ) -> None:
        """Adds the metrics that are computed over all rows together.

        Args:
            records: iterates over the journal's records, from the start on each call.
            overall: by step, a function over all rows, and the columns that it reads.
        """
        for name, (function, columns) in overall.items():
            written = _Written(records, columns)
            found = function(written) if any(True for _ in written) else {}
            self.overall |= {f"{name}.{each}": interval for each, interval in found.items()}

    def add_written(self, written: WriteResult, settings: WriteSettings) -> None:
        """Notes what the writer left out of the run's files."""
        self.left_out = written.left_out
        self.exports = [name for name in settings.exports if (self.output / name).exists()]
        without = {"sidecars"} if settings.embeds_images else {"sidecars", "dataset"}
        with_files = " and ".join(f"{name}/" for name in settings.exports if name not in without)
        if written.json_columns:
            mixed = ", ".join(written.json_columns)
            self.notes.append(
                f"Columns written as JSON text in dataset/, since their values share no type: {mixed}."
            )
        for what, messages in (
            (f"Images left out of {with_files}", written.missing_images),
            ("Rows without a sidecar", written.missing_sidecars),
            (f"Rows for which write.select={settings.select} can't be computed", written.select_errors),
        ):
            for reason, count in messages.most_common(MAX_REASONS_SHOWN):
                self.notes.append(f"{what}: {count:,} ({reason}).")

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """By metric: its mean over the rows that have it, or its value over all rows together."""
        means = {name: each.interval() for name, each in self.measured.items()}
        return {name: each for name, each in means.items() if each is not None} | self.overall

    def value(self, objective: str | None) -> float | None:
        """The mean of the metric `objective`, negated after a `-`; NaN when no row has it."""
        if objective is None:
            return None
        name = named(objective.lstrip("-"), self.metrics)
        return (-1 if objective.startswith("-") else 1) * self.metrics[name].mean if name else math.nan

    @property
    def exit_code(self) -> int:
        """0 every row done, 3 some rows failed, 1 none could be done, 130 interrupted."""
        if self.status == "interrupted":
            return 130
        if self.status == "stopped" or not self.done:
            return 1
        return 3 if self.failed else 0

    @property
    def resume(self) -> str:
        """The command that resumes this run, or its sweep."""
        if self.status == "preview":
            command = [word for word in shlex.split(self.command) if not word.startswith("preview=")]
            return replace(self, command=shlex.join(command), status="finished").resume
        words = shlex.split(self.command)[3:]  # after python -m scalecap
        sweep = "-m" in words or "--multirun" in words
        key, folder = ("hydra.sweep.dir", self.output.parent) if sweep else ("output", self.output)
        if any(word.startswith(f"{key}=") for word in words):
            return self.command
        return f"{self.command} {shlex.quote(f'{key}={quoted(str(folder))}')}"

    def write(self) -> None:
        """Writes `summary.json` in the run's folder."""
        total = self.usage.total
        content = {
            "status": self.status,
            "reason": self.reason,
            "notes": self.notes,
            "rows": {
                "done": self.done,
                "failed": self.failed,
                "reused": self.reused,
                "left_out": self.left_out,
            },
            "requests": {"total": total.requests, "reused": total.reused, "retried": total.retried},
            "tokens": {
                "prompt": total.prompt_tokens,
                "prompt_cached": total.cached_tokens,
                "generated": total.generated_tokens,
                "reasoning": total.reasoning_tokens,
                "prompt_reused": total.reused_prompt_tokens,
                "generated_reused": total.reused_generated_tokens,
            },
            "cost": self.cost,
            "estimate": self.estimate and asdict(self.estimate),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "checks": {
                step: {"kept": self.kept[step], "dropped": self.dropped[step]}
                for step in sorted(self.kept | self.dropped)
            },
            "promises": self.promises,
            "choices": {
                step: {
                    "total": masses.total(),
                    "unanswered": self.unanswered[step],
                    "median_mass": _median(masses),
                }
                for step, masses in sorted(self.masses.items())
            },
            "metrics": {name: interval._asdict() for name, interval in self.metrics.items()},
            "better": self.better,
            "flags": {step: dict(flags) for step, flags in sorted(self.flags.items())},
            "over_limit": dict(sorted(self.over_limit.items())),
            "errors": dict(self.errors.most_common(100)),
            "steps": {
                name: vars(count) | {"cached_share": count.cached_share}
                for name, count in self.usage.steps.items()
            },
            "models": self.models,
            "versions": versions(),
            "command": self.command,
        }
        part = self.output / "summary.json.part"
        text = json.dumps(json_safe(content), indent=2, ensure_ascii=False, allow_nan=False)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.output / "summary.json")

    def screen(self, *, alone: bool = True) -> str:
        """The text printed at the end of a run: counts, checks, metrics, errors, files.

        Args:
            alone: the run is not part of a sweep: it also says what to do next.
        """
        total = self.usage.total
        heads = {"finished": "Done", "interrupted": "Interrupted", "stopped": "Stopped", "preview": "Preview"}
        phases = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        reused = f" ({self.reused} from an earlier run)" if self.reused else ""
        done = plural(self.done, "row")
        if self.total and self.status != "finished":
            done = f"{self.done} of {self.total} rows"
        lines = [f"{heads[self.status]}: {done} captioned{reused}, {self.failed} failed; {phases}"]
        lines += [f"  {self.reason}"] if self.reason else []
        lines += [f"  {self.estimate}"] if self.estimate and self.status == "preview" else []
        for step in sorted(self.kept | self.dropped):
            line = f"  {step}: {self.kept[step]} kept, {self.dropped[step]} dropped"
            masses = self.masses.get(step)
            if masses and (self.unanswered[step] or _median(masses) < CONFIDENT_MASS):
                unanswered = f", {count} of them unanswered" if (count := self.unanswered[step]) else ""
                line += f"{unanswered} (median mass {_median(masses):.2f})"
            promise = f"; {self.promises[step]['sentence']}" if step in self.promises else ""
            lines.append(line + promise)
        lines += [f"  {line}" for line in self._table()]
        for step, flags in sorted(self.flags.items()):
            lines.append(
                f"  {step}: " + ", ".join(f"{count} {flag}" for flag, count in sorted(flags.items()))
            )
        if self.over_limit:
            over_limit = ", ".join(f"{count} of {step}" for step, count in sorted(self.over_limit.items()))
            lines.append(f"  skipped by limits and budget: {over_limit}")
        cached = f" ({total.cached_tokens} cached)" if total.reported_tokens else ""
        lines.append(
            f"  {plural(total.requests, 'request')} ({total.reused} from the cache),"
            f" {total.prompt_tokens} prompt tokens{cached}, {total.generated_tokens} generated"
        )
        shares = {name: each.cached_share for name, each in self.usage.steps.items() if each.repeats}
        if shares:
            cached = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share is not None)
            lines.append(f"  prompt tokens from the prefix cache: {cached}")
        if self.left_out is not None:
            rows = self.done + self.failed
            lines.append(
                f"  write.select: {rows - self.left_out} of {rows} rows exported, {self.left_out} left out"
            )
        for message, count in self.errors.most_common(MAX_ERRORS_SHOWN):
            lines.append(f"  {count} x {message}")
        if len(self.errors) > MAX_ERRORS_SHOWN:
            more = plural(len(self.errors) - MAX_ERRORS_SHOWN, "more kind")
            lines.append(f"  and {more} of error in summary.json")
        lines += [
            f"  {self.output / 'captions.jsonl'}  one JSON object per row",
            *(f"  {self.output / name}  {EXPORTS.get(name, PLUGIN)}" for name in self.exports),
            f"  {self.output / 'summary.json'}  these numbers and more",
        ]
        if self.report:
            lines.append(f"  {self.report}  every image with its captions, for a browser")
        else:
            stale = (self.output / "report.html").exists()
            what = "rewrites report.html, which an earlier run wrote" if stale else "writes report.html"
            lines.append(f"  scalecap report {shlex.quote(str(self.output))}  {what}")
        lines += self.notes
        if not alone and self.exit_code == 0:
            return "\n".join(lines)
        if self.next:
            return "\n".join([*lines, *self.next])
        merged = "scalecap.run.merge" in self.command  # failed rows are retried in the runs of their shards
        if not merged and (self.status != "finished" or self.failed):
            retry = ", retrying failed rows" if self.failed else ""
            lines += [f"Next: resume{retry}:", f"  {self.resume}"]
        else:
            path = shlex.quote(str(self.output / "captions.jsonl"))
            command = f"head -n 1 {path} | python -m json.tool --no-ensure-ascii"
            lines += ["Next: look at a row, with the column of every step:", f"  {command}"]
            if "data=" not in self.command and not merged:
                command = "python -m scalecap model=qwen3-vl-4b data=folder data.path=DIR"
                lines += ["or caption your own images with a real model:", f"  {command}"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """The metrics with their intervals, with a column for each caption.

        The breakdown of a metric (by category, by kind of fact) is only in summary.json.
        """
        lines = []
        for step, measures_ in by_step(self.metrics).items():
            captions = list(dict.fromkeys(caption for cells in measures_.values() for caption in cells))
            table = {f"  {measure}" if measure else step: cells for measure, cells in measures_.items()}
            rows = [[label, *(_cell(cells.get(each)) for each in captions)] for label, cells in table.items()]
            if step not in table:
                rows.insert(0, [step, *captions])
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            for label, *cells in rows:
                aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
                lines.append("  ".join([label.ljust(widths[0]), *aligned]).rstrip())
        return lines


def _median(counts: Mapping[float, int]) -> float:
    """The (lower) median of a histogram."""
    below, half = 0, sum(counts.values()) / 2
    for value in sorted(counts):
        below += counts[value]
        if below >= half:
            return value
    return math.nan


@dataclass
class _Written:
    """The values of these columns in each row that has all of them; each iteration reads the journal."""

    records: Callable[[], Iterable[Record]]
    columns: Sequence[str]

    def __iter__(self) -> Iterator[list[Any]]:
        for record in self.records():
            values = [record["columns"].get(column) for column in self.columns]
            if all(value is not None for value in values):
                yield values


def _cell(interval: Interval | None) -> str:
    return "{:.3g} ({:.3g} to {:.3g})".format(*interval) if interval else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
