"""`data.shard`: one of several parts of a data set, a run each; `scalecap.merge` joins them."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from scalecap.data import DataError, Row


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

    def take(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Its rows."""
        return (row for row in rows if row.index % self.of == self.number)


def parse_shard(text: str) -> Shard:
    """The shard that "3/16" names. DataError with the mend."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found and int(found[1]) < int(found[2]):
        return Shard(int(found[1]), int(found[2]))
    raise DataError(f"data.shard={text}: shards are counted from 0, as 0/16, 1/16 and so on to 15/16")
