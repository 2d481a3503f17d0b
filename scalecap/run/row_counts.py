"""Counts finished rows for the summary, one journal record at a time."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scalecap.rows import Record
from scalecap.run.summary import Summary
from scalecap.stats import Mean, measures


class RowCounts:
    """Adds rows to a summary. Memory does not grow with their number."""

    def __init__(
        self,
        summary: Summary,
        *,
        checks: Mapping[str, str],
        metrics: Sequence[str],
        conditions: Mapping[str, str],
        choices: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], Sequence[bool]]]],
    ) -> None:
        """
        Args:
            checks: by step, its column of scores, each of which may have `kept`, `mass` and a probability.
            metrics: the columns of numbers.
            conditions: by step, the expression of its `when`.
            choices: by step, the expression of its `where`, and a function from a row's columns to the items
                for which it holds.
        """
        self._summary = summary
        self._checks, self._metrics = checks, metrics
        self._conditions, self._choices = conditions, choices
        self._rows_held, self._rows_skipped = Counter[str](), Counter[str]()
        self._items_held, self._items_skipped = Counter[str](), Counter[str]()

    def add(self, record: Record) -> None:
        summary, columns, flags = self._summary, record["columns"], record["flags"]
        if (error := record["error"]) is None:
            summary.done += 1
        else:
            summary.failed += 1
            summary.errors.add(f"{error['step'] or 'row'}: {error['kind']}: {error['message']}")
        for step, names in flags.items():
            summary.flags.setdefault(step, Counter()).update(names)
        summary.over_limit.update(record.get("over_limit") or {})
        for step, column in self._checks.items():
            for each in columns.get(column) or []:
                if isinstance(each, Mapping):
                    self._add_check(step, each)
        for step in self._conditions.keys() & columns.keys():
            skipped = "skipped" in flags.get(step, ())
            (self._rows_skipped if skipped else self._rows_held)[step] += 1
        for step, (_, items_held) in self._choices.items():
            ambiguous = step in self._conditions and "skipped" in flags.get(step, ())
            if step in columns and not ambiguous:
                items = items_held({**record["input"], **columns})
                self._items_held[step] += sum(items)
                self._items_skipped[step] += len(items) - sum(items)
        for column in self._metrics:
            for name, pair in measures(column, columns.get(column)):
                summary.measured.setdefault(name, Mean()).add(pair)

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
        for step, condition in self._conditions.items():
            name = f"{step}: `when: {condition}`"
            self._note(name, "rows", self._rows_held[step], self._rows_skipped[step])
        for step, (condition, _) in self._choices.items():
            name = f"{step}: `where: {condition}`"
            self._note(name, "items", self._items_held[step], self._items_skipped[step])

    def _note(self, condition: str, what: str, held: int, not_held: int) -> None:
        count = held + not_held
        if count and not (held and not_held):
            which = f"all {count}" if held else f"none of {count}"
            self._summary.notes.append(f"{condition} held for {which} {what}.")
