"""The rows of the data that are still to do."""

import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scalecap.data import Source
from scalecap.rows import Row
from scalecap.run.journal import Journal

log = logging.getLogger(__name__)

MAX_LOGGED_CHANGES = 10
"""Changed rows told one by one; of more, the number."""


class PendingRows:
    """The rows that are still to do; those that an earlier run finished are passed over."""

    def __init__(self, source: Source, journal: Journal) -> None:
        self.source, self.journal = source, journal
        self.seen = array("q")
        """Indices, in the order of the data."""
        self.reused = 0
        self.complete = True
        self.on_reuse: Callable[[int], None] = lambda rows: None
        self._changed = self._added = 0
        self._left = self._unfinished()

    def _unfinished(self) -> Iterator[Row]:
        before = self.journal.complete
        for row in self.source.unfinished(self.journal.finished):
            if isinstance(row, range):  # a part that is done, unread
                self.seen.extend(row)
                self.reused += len(row)
                self.on_reuse(len(row))
                continue
            self.seen.append(row.index)
            state = self.journal.state(row)
            if state == "done":
                self.reused += 1
                self.on_reuse(1)
                continue
            if state == "changed":
                self._changed += 1
                if self._changed <= MAX_LOGGED_CHANGES:
                    log.info("row %d has changed and is done again: %s", row.index, _short(row.columns))
            elif state == "new" and before is not None and len(self.seen) > before:
                self._added += 1
                if self._added == 1:
                    log.info("rows from %d on are new", row.index)
            yield row

    def has_next(self) -> bool:
        """Whether a row is left; it is not lost."""
        first = list(itertools.islice(self._left, 1))
        self._left = itertools.chain(first, self._left)
        return bool(first)

    def __iter__(self) -> Iterator[Row]:
        return self._left

    def take(self, count: int | None) -> Iterator[Row]:
        """So many of the rows that are left; None is all of them."""
        yield from itertools.islice(self, count)

    def output_indices(self) -> Iterable[int]:
        """Indices of the rows to write, in the order of the data: those that an earlier run finished, too."""
        if self.complete:
            self.journal.finish(len(self.seen))
        return self.seen if self.complete else self.journal.entries

    def notes(self) -> list[str]:
        """How the data differs from what an earlier run in the folder saw."""
        found = []
        if self._changed:
            found.append(f"{self._changed} rows had changed since they were done, and were done again.")
        if self._added:
            found.append(f"{self._added} rows are new in the data.")
        gone = (self.journal.complete or 0) - len(self.seen)
        if self.complete and gone > 0:
            found.append(f"{gone} rows of before are no longer in the data, nor in the captions.")
        return found


def _short(columns: Mapping[str, Any]) -> str:
    """The first of a row's columns, to know it by."""
    name, value = next(iter(columns.items()), ("", ""))
    return f"{name}={str(value)[:80]}"
