"""Batches finished rows for the sinks, in groups of bounded size, with their image files."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from scalecap.data.images import Fingerprint, image_name, open_image
from scalecap.messages import MessageCounts
from scalecap.rows import Record, Row, RowError

GROUP_ROWS = 1000
"""Most rows of a group, which is a row group in parquet."""
GROUP_BYTES = 64 * 10**6
"""A group is full once its images have this many bytes."""
IMAGE_READERS = 16
"""Threads that read images."""

T = TypeVar("T")


class Export(NamedTuple):
    """One row to write."""

    row: dict[str, Any]
    """Its columns, as in `captions.jsonl`."""
    record: Record
    """Its journal record."""
    source: Row | None
    """The source's row with the same index; None if the data is not open or has no such row."""
    image_file: bytes | None = None
    """Content of the image's file; None where it was not read."""


class Sink(Protocol):
    """Receives all rows, group by group; used as a context manager.

    Another package's is opened by `open(folder, settings)`. The folder is empty; it replaces the run's
    `<package>-<name>/` when the context manager exits without an error.
    """

    def add(self, group: Sequence[Export]) -> None: ...


def with_source_rows(records: Iterable[Record], rows: Iterable[Row]) -> Iterator[tuple[Record, Row | None]]:
    """Joins records to the source's rows by index; both are in ascending order."""
    found = iter(rows)
    row: Row | None = None
    for record in records:
        while row is None or row.index < record["index"]:
            if (row := next(found, None)) is None:
                break
        yield record, row if row and row.index == record["index"] else None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def with_images(exports: Iterable[Export], image: str, missing: MessageCounts) -> Iterator[list[Export]]:
    """Groups of rows with their image files; why one is missing is counted in `missing`."""
    group: list[Export] = []
    size = 0
    with ThreadPoolExecutor(IMAGE_READERS, "images") as pool:
        for batch in batches(exports, IMAGE_READERS):
            for each, content in zip(batch, pool.map(partial(_read_image, image), batch), strict=True):
                if isinstance(content, str):
                    missing.add(content)
                    content = None
                group.append(each._replace(image_file=content))
                size += len(content or b"")
                if size >= GROUP_BYTES or len(group) >= GROUP_ROWS:
                    yield group
                    group, size = [], 0
    if group:
        yield group


def captioned_row(each: Export) -> Row:
    """The source row that was captioned. Raises RowError if the source now has another row at its index."""
    if each.source is None or each.source.id != each.record.get("id", each.source.id):
        raise RowError("other_row", "the data now has another row at this index")
    return each.source


def check_unchanged(each: Export, image: str, hash: str = "") -> None:
    """Raises RowError if the image was replaced since it was captioned (see `Fingerprint`)."""
    row, record = captioned_row(each), each.record
    captioned = Fingerprint(
        record.get("image") or "", record.get("stamp") or "", image_name(record["input"].get(image))
    )
    if not captioned.matches(Fingerprint(hash, row.stamp, image_name(row.columns.get(image)))):
        raise RowError("replaced", "it was replaced after it was captioned")


def _read_image(image: str, each: Export) -> bytes | str | None:
    """The image's file, or the reason why it is missing; None where the row's own error says so."""
    error = each.record["error"]
    if error and error["step"] in (None, "image"):
        return None
    try:
        row = captioned_row(each)
        if row.read_image is None:
            return "the data source can't read image files"
        content = row.read_image()
        name = image_name(each.record["input"].get(image))
        check_unchanged(each, image, open_image({"bytes": content, "path": name}).hash)
    except Exception as error:  # the file may have changed in any way since the row was done
        return str(error)
    return content
