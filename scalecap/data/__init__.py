"""Where rows come from and where they go."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from scalecap.engines.base import Image


class DataError(Exception):
    """The data set can't be read at all; the message names the file or key and the mend."""


class RowError(Exception):
    """This row can't be read; the others can. `kind` is a word for the row's record."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Row:
    """One input row: its place, its columns less the pixels, and how to get the picture.

    `open_image` opens, orients, decodes and hashes the picture; it raises RowError, is called
    once a row and off the event loop. `error` is set when the row itself could not be read
    (invalid JSON on a line): such a row is written with its error and nothing is asked about it.
    `stamp` is another one when the picture is replaced; empty where nothing tells.
    """

    index: int
    columns: Mapping[str, Any]
    open_image: Callable[[], Image]
    error: RowError | None = None
    stamp: str = ""


class Source(Protocol):
    """A data set of rows, in memory, memory-mapped or streamed."""

    columns: Mapping[str, str]
    """Columns that a step may read: name to kind (`text`, `texts`, `number`, `any`)."""
    total: int | None
    """Rows to come; None when a stream does not tell."""

    def __iter__(self) -> Iterator[Row]: ...
