"""Rows of a data set, and what is wrong with one that can't be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from scalecap.engines.base import Image

OUTPUT_COLUMNS = ("row_id", "flags", "error")
"""Columns that every output row has besides those of the data and of the steps."""


class RowError(Exception):
    """This row can't be read; the others can. `kind` is a word for the row's record."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Rows go to other processes, their errors with them."""
        return type(self), (self.kind, str(self))


@dataclass(frozen=True)
class Row:
    """One input row: its place, its columns less the pixels, and how to get the picture.

    `id` names the row and is unique in the data: the source's own key where it has one, else the index. It
    stays when rows are added elsewhere, if it is a key; it is the `row_id` of the output.
    `open_image` opens, orients, decodes and hashes the picture; it raises RowError, is called
    once a row and off the event loop. `error` is set when the row itself could not be read
    (invalid JSON on a line): such a row is written with its error and nothing is asked about it.
    `stamp` is another one when the picture is replaced; empty where nothing tells. Rows that stand
    together in a part (a tar, a row group of parquet) share its stamp, and the last of them tells in
    `part` the index of the first and how many they are, so that a run that goes on can pass over all
    of them unread.
    `read_image` gives the picture's file as it is, and `find_image` its path where it is a file on this disk;
    they raise RowError as `open_image` does. All three can be pickled.
    """

    index: int
    columns: Mapping[str, Any]
    open_image: Callable[[], Image]
    error: RowError | None = None
    stamp: str = ""
    read_image: Callable[[], bytes] | None = None
    find_image: Callable[[], Path] | None = None
    part: tuple[int, int] | None = None
    id: str = ""
    edits: Mapping[str, Any] = field(default_factory=dict)
    """Columns that take the place of what the steps write."""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", str(self.index))


def unreadable_row(index: int, columns: Mapping[str, Any], error: RowError, *, id: str = "") -> Row:
    """A row that can't be read; opening its picture says why, too."""
    return Row(index, columns, partial(_refuse, error), error, id=id)


def _refuse(error: RowError) -> Image:
    raise error
