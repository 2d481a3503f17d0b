"""Where rows come from and where they go."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from scalecap.rows import Row

if TYPE_CHECKING:
    from scalecap.data.shard import Shard


class DataError(Exception):
    """The data set can't be read at all; the message names the file or key and the mend."""


class FinishedParts(Protocol):
    """What is known of a part: how many rows it has, if all of them are finished, else 0."""

    def __call__(self, stamp: str, first: int, rows: int | None = None, *, shard: "Shard" = ...) -> int:
        """Of the part with that stamp whose first row has the index `first`; `rows` if the data tells.

        Only those rows count that are in the shard.
        """


def nothing_finished(stamp: str, first: int, rows: int | None = None, *, shard: object = None) -> int:
    """`FinishedParts` of a run that begins."""
    return 0


class Source(Protocol):
    """A data set of rows, in memory, memory-mapped or streamed."""

    columns: Mapping[str, str]
    """Columns that a step may read: name to kind (`text`, `texts`, `number`, `any`)."""
    total: int | None
    """Rows to come; None when a stream does not tell."""

    def __iter__(self) -> Iterator[Row]: ...

    def unfinished(self, finished: FinishedParts) -> Iterator[Row | range]:
        """The rows; in place of a part that is finished its indices, where the source has parts."""
