"""The rows of the data that are still to be done."""

import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scalecap.data import Source
from scalecap.messages import plural
from scalecap.rows import Row
from scalecap.run.journal import Journal

log = logging.getLogger(__name__)

MAX_LOGGED_CHANGES = 10
"""Changed rows that are logged one by one; the summary has their number."""


class PendingRows:
    """The rows still to be done; those that an earlier run finished are skipped.

    Args:
        preview: number of rows of the data, from its first, to take them from; None is all.
    """

    def __init__(self, source: Source, journal: Journal, preview: int | None = None) -> None:
        self.source, self.journal = source, journal
        self._preview = preview
        self.seen = array("q")
        """Indices of all rows read so far, in the order of the data."""
        self.reused = 0
        self.complete = True
        self.on_reuse: Callable[[int], None] = lambda rows: None
        self._changed = self._added = 0
        self._pending = self._unfinished()
        self._peeked: list[Row] = []

    def _unfinished(self) -> Iterator[Row]:
        before = self.journal.complete
        for row in self.source.unfinished(self.journal.finished):
            if isinstance(row, range):  # a finished part, which was not read
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
                    log.info("row %d has changed and is redone: %s", row.index, _short(row.columns))
            elif state == "new" and before is not None and len(self.seen) > before:
                self._added += 1
                if self._added == 1:
                    log.info("rows from index %d on are new", row.index)
            yield row

    def may_remain(self) -> bool:
        """Whether rows may be left to take, without a search where an earlier run was stopped: some surely
        are."""
        stopped = len(self.journal.entries) > 0 and self.journal.complete is None
        return (stopped and self._preview is None) or self._may_take()

    def has_next(self) -> bool:
        """Whether a row of the data is left, be it beyond the preview; it is peeked at, not consumed."""
        self._peeked = self._peeked or list(itertools.islice(self._pending, 1))
        return bool(self._peeked)

    def _may_take(self) -> bool:
        # `seen` ends with the row that is peeked at.
        return self.has_next() and (self._preview is None or len(self.seen) <= self._preview)

    def take(self) -> Iterator[Row]:
        """The rows, up to the end of the preview."""
        while self._may_take():
            yield self._peeked.pop()

    def output_indices(self) -> Iterable[int]:
        """Indices of the rows to write, in the order of the data, with those that an earlier run finished."""
        if self.complete:
            self.journal.finish(len(self.seen))
        return self.seen if self.complete else self.journal.entries

    def notes(self) -> list[str]:
        """How the data differs from what an earlier run in the folder saw."""
        found = []
        if self._changed:
            found.append(f"{plural(self._changed, 'row')} changed after being done, now redone.")
        if self._added:
            found.append(f"{plural(self._added, 'row')} added to the data since the earlier run.")
        gone = (self.journal.complete or 0) - len(self.seen)
        if self.complete and gone > 0:
            found.append(
                f"{plural(gone, 'row')} of an earlier run no longer in the data, nor in the captions."
            )
        return found


def _short(columns: Mapping[str, Any]) -> str:
    """The first column of a row, to recognise it by."""
    name, value = next(iter(columns.items()), ("", ""))
    return f"{name}={str(value)[:80]}"
