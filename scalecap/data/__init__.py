"""Data sources and sinks: how rows are read, and how results are written."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from scalecap.rows import Row

if TYPE_CHECKING:
    from scalecap.data.shard import Shard


class DataError(Exception):
    """The data set can't be read at all; the message names the file or key and how to fix it."""


class FinishedParts(Protocol):
    """Number of rows of a part (a tar shard, a parquet row group) if all of them are finished, else 0."""

    def __call__(self, stamp: str, first: int, rows: int | None = None, *, shard: "Shard" = ...) -> int:
        """Looks up the part with this stamp whose first row has the index `first`.

        Args:
            rows: the number of its rows, where the data declares it.
            shard: only rows of this shard have to be finished.
        """


def nothing_finished(stamp: str, first: int, rows: int | None = None, *, shard: object = None) -> int:
    """`FinishedParts` of a new run."""
    return 0


class Source(Protocol):
    """An iterable data set of rows, in memory, memory-mapped or streamed."""

    columns: Mapping[str, str]
    """Columns that a step may read: name to kind (`text`, `texts`, `number`, `any`)."""
    total: int | None
    """Number of rows; None for a stream of unknown length."""

    def __iter__(self) -> Iterator[Row]: ...

    def unfinished(self, finished: FinishedParts) -> Iterator[Row | range]:
        """The rows; a finished part is yielded as the range of its indices instead, unread."""
