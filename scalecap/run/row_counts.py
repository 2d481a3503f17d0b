"""Counts finished rows for the summary, one journal record at a time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scalecap.interpreter.step import Step
from scalecap.rows import Record
from scalecap.run.summary import Summary
from scalecap.stats import Mean, measures


class RowCounts:
    """Adds rows to a summary. Memory does not grow with their number."""

    def __init__(self, summary: Summary, steps: Sequence[Step]) -> None:
        self._summary, self._steps = summary, steps
        self._checks = [
            (step.name, column)
            for step in steps
            for side, column in zip(step.stage.side, step.writes[1:], strict=True)
            if side in ("scores", "answers")
        ]
        """Each check with its column of records, which may have `kept`, `mass` and a probability."""
        self._held, self._not_held = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        """By step and `when` or `where`: rows or items for which the condition held, or did not."""

    def add(self, record: Record) -> None:
        summary, columns, flags = self._summary, record["columns"], record["flags"]
        if (error := record["error"]) is None:
            summary.done += 1
        else:
            summary.failed += 1
            summary.errors.add(f"{error['step'] or 'row'}: {error['kind']}: {error['message']}")
        for name, set_flags in flags.items():
            summary.flags.setdefault(name, Counter()).update(set_flags)
        summary.over_limit.update(record.get("over_limit") or {})
        for name, column in self._checks:
            for each in columns.get(column) or []:
                if isinstance(each, Mapping):
                    self._add_check(name, each)
        for step in self._steps:
            if step.name in columns:
                self._add_step(step, record)

    def _add_step(self, step: Step, record: Record) -> None:
        """Counts what a step wrote: a metric's numbers, and whether its conditions held."""
        skipped = step.when is not None and "skipped" in record["flags"].get(step.name, ())
        if step.when:
            (self._not_held if skipped else self._held)[step.name, "when"] += 1
        if step.where and not skipped:
            items = step.selected({**record["input"], **record["columns"]})
            self._held[step.name, "where"] += sum(items)
            self._not_held[step.name, "where"] += len(items) - sum(items)
        if step.is_metric:
            for name, pair in measures(step.name, record["columns"][step.name]):
                self._summary.measured.setdefault(name, Mean()).add(pair)

    def _add_check(self, step: str, check: Mapping[str, Any]) -> None:
        summary = self._summary
        if check.get("checked") is False:
            return
        if "kept" in check:
            (summary.kept if check["kept"] else summary.dropped)[step] += 1
        if (mass := check.get("mass")) is not None:
            summary.masses.setdefault(step, Counter())[round(mass, 2)] += 1
            summary.unanswered[step] += check.get("p_yes", check.get("p")) is None

    def note_constants(self) -> None:
        """Notes conditions that held always or never: they may be mistakes."""
        for key, unit in (("when", "rows"), ("where", "items")):
            for step in self._steps:
                held, not_held = self._held[step.name, key], self._not_held[step.name, key]
                if bool(held) != bool(not_held):
                    condition = f"{step.name}: `{key}: {getattr(step, key).source}`"
                    which = f"all {held}" if held else f"none of {not_held}"
                    self._summary.notes.append(f"{condition} held for {which} {unit}.")
