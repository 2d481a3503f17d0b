"""Rows on their way into files, in groups of a bounded size, with the files of their pictures."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from scalecap.data.images import Fingerprint, image_name, open_image
from scalecap.messages import MessageCounts
from scalecap.rows import Row, RowError

GROUP_ROWS = 1000
"""Rows held in memory at once, which are a row group of parquet."""
GROUP_BYTES = 64 * 10**6
"""Pictures held in memory at once: a group with so many bytes is full."""
IMAGE_READERS = 16
"""Pictures read at the same time."""

T = TypeVar("T")
Record = Mapping[str, Any]


class Export(NamedTuple):
    """A row to be written."""

    row: dict[str, Any]
    """As in `captions.jsonl`."""
    record: Record
    """As the journal holds it."""
    source: Row | None
    """The data's row in its place; None without the data, and where that has none."""
    picture: bytes | None = None
    """The picture's file, if it is read and could be."""


class Sink(Protocol):
    """A context manager's value that takes all rows, group by group."""

    def add(self, group: Sequence[Export]) -> None: ...


def with_source_rows(records: Iterable[Record], rows: Iterable[Row]) -> Iterator[tuple[Record, Row | None]]:
    """Each record with the data's row in its place, if there is one."""
    found = iter(rows)
    row: Row | None = None
    for record in records:
        while row is None or row.index < record["index"]:
            if (row := next(found, None)) is None:
                break
        yield record, row if row and row.index == record["index"] else None


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of what is left."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def in_groups(exports: Iterable[Export]) -> Iterator[list[Export]]:
    """The rows in groups, no picture read."""
    return batches(exports, GROUP_ROWS)


def with_images(exports: Iterable[Export], image: str, missing: MessageCounts) -> Iterator[list[Export]]:
    """The rows in groups, with the files of their pictures; the reasons of those that lack are counted."""
    group: list[Export] = []
    size = 0
    with ThreadPoolExecutor(IMAGE_READERS, "pictures") as pool:
        for batch in batches(exports, IMAGE_READERS):
            for each, content in zip(batch, pool.map(partial(_read_image, image), batch), strict=True):
                if isinstance(content, str):
                    missing.add(content)
                    content = None
                group.append(each._replace(picture=content))
                size += len(content or b"")
                if size >= GROUP_BYTES or len(group) >= GROUP_ROWS:
                    yield group
                    group, size = [], 0
    if group:
        yield group


def captioned_row(each: Export) -> Row:
    """The data's row that was captioned. Raises RowError when another one is there now."""
    if each.source is None or each.source.id != each.record.get("id", each.source.id):
        raise RowError("other_row", "the data has another row there now")
    return each.source


def check_unchanged(each: Export, image: str, hash: str = "") -> None:
    """Raises RowError when the picture is another one than was captioned, by the surest that is known."""
    row, record = captioned_row(each), each.record
    captioned = Fingerprint(
        record.get("image") or "", record.get("stamp") or "", image_name(record["input"].get(image))
    )
    if not captioned.matches(Fingerprint(hash, row.stamp, image_name(row.columns.get(image)))):
        raise RowError("replaced", "it was replaced after it was captioned")


def _read_image(image: str, each: Export) -> bytes | str | None:
    """A picture's file, or why it is not to be had; None where its row says so itself."""
    error = each.record["error"]
    if error and error["step"] in (None, "image"):
        return None
    try:
        row = captioned_row(each)
        if row.read_image is None:
            return "the data does not give the files of its pictures"
        content = row.read_image()
        name = image_name(each.record["input"].get(image))
        check_unchanged(each, image, open_image({"bytes": content, "path": name}).hash)
    except Exception as error:  # whatever became of it since its row was done
        return str(error)
    return content
