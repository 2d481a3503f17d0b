"""Rows: as the data has them (`Row`), and as the journal keeps them once they are finished (`Record`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, Self, TypedDict

from scalecap.engines.base import Image

OUTPUT_COLUMNS = ("row_id", "flags", "error")
"""Columns of every output row besides those of the data and the steps."""


class RowError(Exception):
    """A single row can't be read. `kind` is a short code for the row's record."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Makes it picklable: rows and their errors go to other processes."""
        return type(self), (self.kind, str(self))


@dataclass(frozen=True)
class Row:
    """One input row: its columns without the pixels, and how to open its image.

    The three functions can be pickled, and raise RowError.
    """

    index: int
    """Position in the data, from 0."""
    columns: Mapping[str, Any]
    open_image: Callable[[], Image]
    """Opens, orients, decodes and hashes the image; called once per row, off the event loop."""
    error: RowError | None = None
    """Set when the row itself can't be read (invalid JSON): it is written with this error, uncaptioned."""
    stamp: str = ""
    """Changes when the image is replaced; empty where that is not known. Rows of one part share its stamp."""
    read_image: Callable[[], bytes] | None = None
    """Reads the image file, unchanged."""
    find_image: Callable[[], Path] | None = None
    """Path of the image, if it is a file on this disk."""
    part: tuple[int, int] | None = None
    """In the last row of a part (a tar, a parquet row group): the index of its first row and the number of
    its rows, so that a resumed run can skip a finished part unread."""
    id: str = ""
    """Unique in the data: the key of the source where it has one, else the index; `row_id` of the output."""
    edits: Mapping[str, Any] = field(default_factory=dict)
    """Columns that replace what the steps write."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", str(self.index))


class Failure(TypedDict):
    """Why a row failed."""

    step: str | None
    """Null if the row, "image" if its image could not be read."""
    kind: str
    message: str


class Record(TypedDict):
    """A finished row in the journal, from which all files of the run are made."""

    index: int
    id: NotRequired[str]
    """Missing, like `stamp` and `image`, in journals of early versions."""
    stamp: NotRequired[str]
    image: NotRequired[str]
    """`Image.hash`; empty if no step needed the image or it could not be opened."""
    input: Mapping[str, Any]
    """The columns of the data."""
    columns: Mapping[str, Any]
    """The columns of the steps that succeeded."""
    flags: Mapping[str, Sequence[str]]
    """By step."""
    error: Failure | None
    usage: NotRequired[Sequence[float]]
    """The values of a `RowUsage`."""
    over_limit: NotRequired[Mapping[str, int]]
    """By step, the number of items beyond its limit or the pipeline's budget."""
    edits: NotRequired[Mapping[str, Any]]
    """See `Row.edits`."""
    part: NotRequired[Sequence[int]]
    """See `Row.part`."""


def unreadable_row(index: int, columns: Mapping[str, Any], error: RowError, *, id: str = "") -> Row:
    """A row that can't be read; opening its image raises the same error."""
    return Row(index, columns, partial(_raise, error), error, id=id)


def _raise(error: RowError) -> Image:
    raise error
