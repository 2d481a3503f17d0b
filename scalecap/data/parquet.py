"""`data=parquet`: parquet files whose image column holds bytes or paths.

A row's id is `file#row`: the file as `data.path` names it, and the row's number in it from 0.

All columns but bytes are read first. Image bytes are streamed row group by row group when a row needs them.
A row group whose rows are all finished is skipped unread; its size is in the file's footer.
"""

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from scalecap.config.settings import DataSettings
from scalecap.data import DataError, FinishedParts
from scalecap.data.files import File, error_text, find_files
from scalecap.data.images import image_row
from scalecap.data.sources import RowSource, json_safe, partitioned, required_path
from scalecap.rows import Row, RowError, unreadable_row
from scalecap.text.suggestions import did_you_mean

BATCH_ROWS = 256
"""Rows per batch, without images."""
BATCH_IMAGES = 8
"""Images per batch."""
MAX_BATCHES = 4
"""Batches of images kept of each row group; rows need their images nearly in order."""
MAX_STREAMS = 8
"""Row groups whose images are streamed at the same time. Each holds a page, the smallest unit that parquet
reads; many writers make pages of up to 1,024 images."""
BUFFER_BYTES = 2**20
"""Buffer of a stream; without one, a whole column chunk is read at once."""
FOOTER_THREADS = 16
"""Footers read in parallel."""


@dataclass(frozen=True)
class FileInfo:
    """One parquet file, as its footer describes it."""

    file: File
    stamp: str = ""
    groups: tuple[int, ...] = ()
    """Number of rows of each row group."""
    kinds: tuple[tuple[str, str], ...] = ()
    """Name and kind of each column."""
    leaves: tuple[str, ...] = ()
    """Leaf columns that are read first: all but bytes."""
    pixels: str = ""
    """Leaf column of the images' bytes; empty where images are given by path."""
    error: RowError | None = None


class _ImageStream:
    """Streams the images of one row group and keeps the last few; going further back restarts the stream."""

    def __init__(self, file: File, group: int, pixels: str) -> None:
        self._file, self._group, self._pixels = file, group, pixels
        self._lock = threading.Lock()
        self._whole = True
        """Whether the last read succeeded; after an error the reader can't continue."""
        self._begin()

    def _begin(self) -> None:
        self._parquet = _open_file(self._file)
        self._batches = self._parquet.iter_batches(
            BATCH_IMAGES, row_groups=[self._group], columns=[self._pixels], use_threads=False
        )
        self._held: deque[list[Any]] = deque(maxlen=MAX_BATCHES)
        self._next, self._rows = 0, self._parquet.metadata.row_group(self._group).num_rows

    def image(self, row: int) -> bytes | None:
        """The image of a row (its number in the row group, from 0); None for a null."""
        with self._lock:
            if not self._whole or row < self._next - sum(map(len, self._held)):
                self._parquet.close(force=True)
                self._begin()
            self._whole = False
            while row >= self._next:
                batch = next(self._batches).column(0).to_pylist()
                self._held.append(batch)
                self._next += len(batch)
                if self._next == self._rows:
                    self._batches = iter(())
                    self._parquet.close(force=True)
            cell = [each for batch in self._held for each in batch][row - self._next]
            self._whole = True
        found: bytes | None = cell["bytes"] if isinstance(cell, dict) else cell
        return found


@functools.lru_cache(MAX_STREAMS)
def _stream(file: File, stamp: str, group: int, pixels: str) -> _ImageStream:
    return _ImageStream(file, group, pixels)


def _enter(stack: ExitStack, file: File) -> pq.ParquetFile:
    return stack.enter_context(_open_file(file))


def _open_file(file: File) -> pq.ParquetFile:
    return pq.ParquetFile(file.open(), pre_buffer=False, buffer_size=BUFFER_BYTES)


def open_parquet(data: DataSettings) -> RowSource:
    """The rows of all matching files; an unreadable file is one row with an error.

    Raises:
        DataError: no file can be read, or all are empty.
    """
    path = required_path(data)
    files = find_files(path, ".parquet")
    with ThreadPoolExecutor(FOOTER_THREADS, "footers") as pool:
        tables = list(pool.map(partial(_read_info, image=data.image), files))
    read = [table for table in tables if table.error is None]
    if not read:
        raise DataError(str(tables[0].error))
    total = sum(1 if table.error else sum(table.groups) for table in tables)
    if not total:
        raise DataError(f"{path!r} has no rows")
    rows = partitioned(partial(_unfinished, tables, data))
    return replace(rows, columns=dict(read[0].kinds), total=total)


def _read_info(file: File, image: str) -> FileInfo:
    try:
        _, stamp = file.stat()
        with _open_file(file) as opened:
            return _describe(file, stamp, opened, image)
    except RowError as error:
        return FileInfo(file, error=error)
    except Exception as error:  # pyarrow and file systems raise many types
        reason = f"can't read {file.name!r} as parquet: {error_text(error)}"
        return FileInfo(file, error=RowError("unreadable_file", reason))


def _describe(file: File, stamp: str, opened: pq.ParquetFile, image: str) -> FileInfo:
    schema = opened.schema_arrow
    if image not in schema.names:
        reason = f"data.image={image}: {file.name!r} has no such column"
        raise RowError("missing_key", f"{reason}{did_you_mean(image, schema.names)}")
    held = schema.field(image).type
    pixels = ""
    if pa.types.is_struct(held) and held.get_field_index("bytes") >= 0:
        pixels = f"{image}.bytes"
    elif pa.types.is_binary(held) or pa.types.is_large_binary(held):
        pixels = image
    elif not _is_path(held):
        reason = f"data.image={image}: expected a column of bytes or paths, got {held} in {file.name!r}"
        raise RowError("bad_cell", reason)
    leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
    groups = range(opened.num_row_groups)
    return FileInfo(
        file,
        f"{image} in {stamp}",
        tuple(opened.metadata.row_group(group).num_rows for group in groups),
        tuple((field.name, "text" if field.name == image else _kind(field.type)) for field in schema),
        tuple(leaf.path for leaf in leaves if not _is_bytes(leaf)),
        pixels,
    )


def _is_path(held: pa.DataType) -> bool:
    """Whether a column of this type names files: texts, or {path} as scalecap writes it."""
    if pa.types.is_struct(held) and [field.name for field in held] == ["path"]:
        held = held.field(0).type
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))


def _is_bytes(leaf: Any) -> bool:
    raw = leaf.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
    return raw and leaf.logical_type.type == "NONE" and leaf.converted_type == "NONE"


def _kind(type_: pa.DataType) -> str:
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    is_list = pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return "texts" if is_list and _kind(type_.value_type) == "text" else "any"


def _unfinished(tables: list[FileInfo], data: DataSettings, finished: FinishedParts) -> Iterator[Row | range]:
    """The rows of all files; a finished row group is yielded as the range of its indices."""
    index = 0
    for table in tables:
        if table.error:
            yield unreadable_row(index, {data.image: table.file.name}, table.error, id=f"{table.file.name}#")
            index += 1
            continue
        with ExitStack() as stack:
            opened = functools.cache(partial(_enter, stack, table.file))
            for group, rows in enumerate(table.groups):
                # Files named by path may have changed although the parquet file has not.
                if table.pixels and finished(table.stamp, index, rows):
                    yield range(index, index + rows)
                else:
                    yield from _group(table, opened, group, data, index)
                index += rows


def _group(
    table: FileInfo, opened: Callable[[], pq.ParquetFile], group: int, data: DataSettings, index: int
) -> Iterator[Row]:
    """The rows of one row group; after an error, each remaining row has it."""
    rows, before = table.groups[group], sum(table.groups[:group])
    names = [name for name, _ in table.kinds]
    done = 0
    try:
        leaves = list(table.leaves)
        for batch in opened().iter_batches(BATCH_ROWS, row_groups=[group], columns=leaves, use_threads=False):
            for values in batch.to_pylist() or [{}] * batch.num_rows:
                whole = {name: values.get(name) for name in names}
                yield _row(table, whole, group, done, before + done, data, index + done)
                done += 1
    except Exception as cause:  # pyarrow and file systems raise many types
        error = RowError(
            "unreadable_file", f"can't read the rest of {table.file.name!r}: {error_text(cause)}"
        )
        for number in range(done, rows):
            cell = f"{table.file.name}#{before + number}"
            yield unreadable_row(index + number, {data.image: cell}, error, id=cell)


def _row(
    table: FileInfo, values: dict[str, Any], group: int, row: int, number: int, data: DataSettings, index: int
) -> Row:
    place, held = f"{table.file.name}#{number}", values[data.image]
    path = held.get("path") if isinstance(held, dict) else held
    here = () if "://" in table.file.url else (Path(table.file.url).parent,)
    columns = {name: json_safe(value) for name, value in values.items()}
    columns[data.image] = json_safe(path or place) if table.pixels else json_safe(path)
    embedded = partial(_image_cell, table.file, table.stamp, table.pixels, group, row, path, path or place)
    return image_row(
        *(index, columns, embedded if table.pixels else path),
        id=place,
        stamp=table.stamp if table.pixels else None,
        folders=(*here, Path.cwd()),
        allow_urls=data.allow_urls,
        within=None if data.allow_outside else here,
    )


def _image_cell(
    file: File, stamp: str, pixels: str, group: int, row: int, path: str | None, name: str
) -> Any:
    """The bytes of a row's image; its path where they are null. Raises RowError."""
    try:
        content = _stream(file, stamp, group, pixels).image(row)
    except Exception as error:  # pyarrow and file systems raise many types
        reason = f"can't read the image of {name!r}: {error_text(error)}"
        raise RowError("unreadable_image", reason) from error
    return path if content is None else {"bytes": content, "path": name}
