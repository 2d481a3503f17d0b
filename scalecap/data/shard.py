"""`data.shard`: one of several parts of a data set, a run each; `scalecap.run.merge` joins them."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from scalecap.data import DataError, FinishedParts
from scalecap.rows import Row


class Shard(NamedTuple):
    """Every `of`-th row from `number` on, by the index in the whole data.

    Shards are as large as each other, give or take a row, and keep their rows when the data grows.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def total(self, rows: int | None) -> int | None:
        """How many of so many rows are in it."""
        return None if rows is None else len(range(self.number, rows, self.of))

    def select(self, indices: range) -> range:
        """Its own of consecutive indices."""
        return indices[(self.number - indices.start) % self.of :: self.of]

    def contains(self, index: int) -> bool:
        return index % self.of == self.number

    def filter(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Its rows."""
        return (row for row in rows if self.contains(row.index))

    def skip_finished(
        self, rows: Callable[[FinishedParts], Iterator[Row | range]], finished: FinishedParts
    ) -> Iterator[Row | range]:
        """Its rows, and its indices in parts that are finished; its own last row of a part tells of it."""
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
    """The shard that "3/16" names. DataError with the mend."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found and int(found[1]) < int(found[2]):
        return Shard(int(found[1]), int(found[2]))
    raise DataError(f"data.shard={text}: shards are counted from 0, as 0/16, 1/16 and so on to 15/16")
