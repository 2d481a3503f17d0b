"""`data.shard`: one of n shards of a data set, a run each; `scalecap.run.merge` joins the runs."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from scalecap.data import DataError, FinishedParts
from scalecap.rows import Row


class Shard(NamedTuple):
    """Rows i, i+n, i+2n, … of the whole data set, where i is `number` and n is `of`.

    The sizes of shards differ by at most one row, and a shard keeps its rows when the data set grows.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def total(self, rows: int | None) -> int | None:
        """The size of the shard for a data set of this size; None if unknown."""
        return None if rows is None else len(range(self.number, rows, self.of))

    def select(self, indices: range) -> range:
        """The indices of a range that are in the shard."""
        return indices[(self.number - indices.start) % self.of :: self.of]

    def contains(self, index: int) -> bool:
        return index % self.of == self.number

    def filter(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that are in the shard."""
        return (row for row in rows if self.contains(row.index))

    def skip_finished(
        self, rows: Callable[[FinishedParts], Iterator[Row | range]], finished: FinishedParts
    ) -> Iterator[Row | range]:
        """The shard's rows, and its indices in finished parts; its last row of each part has `Row.part`."""
        last: Row | None = None
        try:
            for each in rows(partial(finished, shard=self)):
                if isinstance(each, range):
                    if last:
                        yield last
                    last = None
                    yield self.select(each)
                    continue
                if self.contains(each.index):
                    if last:
                        yield last
                    last = each
                if each.part and last and last.index >= each.part[0]:
                    last = replace(last, part=each.part)
        except DataError:
            if last:
                yield last
            raise
        if last:
            yield last


WHOLE = Shard(0, 1)
"""All rows."""


def parse_shard(text: str) -> Shard:
    """Parses "3/16". Raises DataError."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found and int(found[1]) < int(found[2]):
        return Shard(int(found[1]), int(found[2]))
    raise DataError(f"data.shard={text}: expected i/n with i from 0 to n-1, e.g. 0/16 to 15/16")
