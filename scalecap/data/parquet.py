"""`data=parquet`: parquet files, their pictures in a column of bytes, or of paths.

A row's id is `file#row`, the file as `data.path` names it and the row counted from 0.

Columns are read less the bytes; pictures in the file are streamed when their rows ask for them, a row group
at a time, and a row group whose rows are all finished is not read at all: how many it has is in the
file's footer.
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
from scalecap.data.images import find_image, image_stamp, open_image, read_image
from scalecap.data.sources import RowSource, json_safe, partitioned, required_path
from scalecap.engines.base import Image
from scalecap.rows import Row, RowError, unreadable_row
from scalecap.text.suggestions import did_you_mean

ROWS = 256
"""Rows read at once, without their pictures."""
PICTURES = 8
"""Pictures read at once."""
HELD = 4
"""Batches of pictures held of a row group: rows ask for theirs nearly in order."""
STREAMS = 8
"""Row groups whose pictures are read at the same time. Of each that is not yet at its end a page is held,
the least that parquet reads; many writers make a page of up to 1,024 pictures."""
BUFFER = 2**20
"""Bytes read at once; without a buffer a whole column of a row group is."""
FOOTERS = 16
"""Footers read at the same time."""


@dataclass(frozen=True)
class Table:
    """One file as its footer tells it."""

    file: File
    stamp: str = ""
    groups: tuple[int, ...] = ()
    """Rows of each row group."""
    kinds: tuple[tuple[str, str], ...] = ()
    """Columns by name with their kinds."""
    leaves: tuple[str, ...] = ()
    """What is read of a row at first: everything but bytes."""
    pixels: str = ""
    """The leaf that holds pictures' bytes; empty when the picture's column has paths."""
    error: RowError | None = None


@dataclass(frozen=True)
class Picture:
    """A row's picture: its bytes by their place in the file, else a file by its path."""

    file: File
    stamp: str
    pixels: str
    group: int
    row: int
    path: str | None
    name: str
    folders: tuple[Path, ...]
    allow_urls: bool
    within: tuple[Path, ...] | None

    def open(self) -> Image:
        """The picture. Raises RowError."""
        return open_image(self._cell(), folders=self.folders, allow_urls=self.allow_urls)

    def read(self) -> bytes:
        """Its file's bytes. Raises RowError."""
        return read_image(self._cell(), folders=self.folders, allow_urls=self.allow_urls, within=self.within)

    def find(self) -> Path:
        """Its file, where the column has paths. Raises RowError."""
        if self.pixels:
            raise RowError("no_file", "the picture is no file on this disk")
        return find_image(self.path, folders=self.folders, within=self.within)

    def _cell(self) -> Any:
        content = None
        if self.pixels:
            try:
                content = _stream(self.file, self.stamp, self.group, self.pixels).picture(self.row)
            except Exception as error:  # pyarrow and file systems raise what broken files make them raise
                reason = f"the picture of {self.name!r} can't be read: {error_text(error)}"
                raise RowError("unreadable_image", reason) from error
        return self.path if content is None else {"bytes": content, "path": self.name}


class _Stream:
    """The pictures of one row group, of which a few are held; one that is behind them begins it anew."""

    def __init__(self, file: File, group: int, pixels: str) -> None:
        self._file, self._group, self._pixels = file, group, pixels
        self._lock = threading.Lock()
        self._whole = True
        """Whether the last read worked: a reader that failed is at its end."""
        self._begin()

    def _begin(self) -> None:
        self._opened = _opened(self._file)
        self._batches = self._opened.iter_batches(
            PICTURES, row_groups=[self._group], columns=[self._pixels], use_threads=False
        )
        self._held: deque[list[Any]] = deque(maxlen=HELD)
        self._next, self._rows = 0, self._opened.metadata.row_group(self._group).num_rows

    def picture(self, row: int) -> bytes | None:
        """The bytes of a row, counted from 0 in its row group; None where it has none."""
        with self._lock:
            if not self._whole or row < self._next - sum(map(len, self._held)):
                self._opened.close(force=True)
                self._begin()
            self._whole = False
            while row >= self._next:
                batch = next(self._batches).column(0).to_pylist()
                self._held.append(batch)
                self._next += len(batch)
                if self._next == self._rows:
                    self._batches = iter(())
                    self._opened.close(force=True)
            cell = [each for batch in self._held for each in batch][row - self._next]
            self._whole = True
        found: bytes | None = cell["bytes"] if isinstance(cell, dict) else cell
        return found


@functools.lru_cache(STREAMS)
def _stream(file: File, stamp: str, group: int, pixels: str) -> _Stream:
    return _Stream(file, group, pixels)


def _entered(stack: ExitStack, file: File) -> pq.ParquetFile:
    return stack.enter_context(_opened(file))


def _opened(file: File) -> pq.ParquetFile:
    return pq.ParquetFile(file.open(), pre_buffer=False, buffer_size=BUFFER)


def open_parquet(data: DataSettings) -> RowSource:
    """The rows of all files. Raises DataError when no file can be read."""
    path = required_path(data)
    files = find_files(path, ".parquet")
    with ThreadPoolExecutor(FOOTERS, "footers") as pool:
        tables = list(pool.map(partial(_table, image=data.image), files))
    read = [table for table in tables if table.error is None]
    if not read:
        raise DataError(str(tables[0].error))
    total = sum(1 if table.error else sum(table.groups) for table in tables)
    if not total:
        raise DataError(f"{path!r} holds no rows")
    rows = partitioned(partial(_unfinished, tables, data))
    return replace(rows, columns=dict(read[0].kinds), total=total)


def _table(file: File, image: str) -> Table:
    try:
        _, stamp = file.stat()
        with _opened(file) as opened:
            return _described(file, stamp, opened, image)
    except RowError as error:
        return Table(file, error=error)
    except Exception as error:  # pyarrow and file systems raise what broken files make them raise
        reason = f"{file.name!r} can't be read as parquet: {error_text(error)}"
        return Table(file, error=RowError("unreadable_file", reason))


def _described(file: File, stamp: str, opened: pq.ParquetFile, image: str) -> Table:
    schema = opened.schema_arrow
    if image not in schema.names:
        reason = f"{file.name!r} has no column {image!r}: data.image names the picture's"
        raise RowError("missing_key", f"{reason}{did_you_mean(image, schema.names)}")
    held = schema.field(image).type
    pixels = ""
    if pa.types.is_struct(held) and held.get_field_index("bytes") >= 0:
        pixels = f"{image}.bytes"
    elif pa.types.is_binary(held) or pa.types.is_large_binary(held):
        pixels = image
    elif not pa.types.is_string(held) and not pa.types.is_large_string(held):
        reason = f"column {image!r} of {file.name!r} holds {held}, neither bytes nor paths"
        raise RowError("bad_cell", f"{reason}; data.image names the picture's")
    leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
    groups = range(opened.num_row_groups)
    return Table(
        file,
        f"{image} in {stamp}",
        tuple(opened.metadata.row_group(group).num_rows for group in groups),
        tuple((field.name, "text" if field.name == image else _kind(field.type)) for field in schema),
        tuple(leaf.path for leaf in leaves if not _is_bytes(leaf)),
        pixels,
    )


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


def _unfinished(tables: list[Table], data: DataSettings, finished: FinishedParts) -> Iterator[Row | range]:
    """The rows of all files; in place of a finished row group the indices of its rows."""
    index = 0
    for table in tables:
        if table.error:
            yield unreadable_row(index, {data.image: table.file.name}, table.error, id=f"{table.file.name}#")
            index += 1
            continue
        with ExitStack() as stack:
            opened = functools.cache(partial(_entered, stack, table.file))
            for group, rows in enumerate(table.groups):
                # Paths lead to files, which may have changed on their own.
                if table.pixels and finished(table.stamp, index, rows):
                    yield range(index, index + rows)
                else:
                    yield from _group(table, opened, group, data, index)
                index += rows


def _group(
    table: Table, opened: Callable[[], pq.ParquetFile], group: int, data: DataSettings, index: int
) -> Iterator[Row]:
    """The rows of one row group; where it can't be read on, each that is left has the error."""
    rows, before = table.groups[group], sum(table.groups[:group])
    names = [name for name, _ in table.kinds]
    done = 0
    try:
        leaves = list(table.leaves)
        for batch in opened().iter_batches(ROWS, row_groups=[group], columns=leaves, use_threads=False):
            for values in batch.to_pylist() or [{}] * batch.num_rows:
                whole = {name: values.get(name) for name in names}
                yield _row(table, whole, group, done, before + done, data, index + done)
                done += 1
    except Exception as cause:  # pyarrow and file systems raise what broken files make them raise
        error = RowError("unreadable_file", f"{table.file.name!r} can't be read on: {error_text(cause)}")
        for number in range(done, rows):
            cell = f"{table.file.name}#{before + number}"
            yield unreadable_row(index + number, {data.image: cell}, error, id=cell)


def _row(
    table: Table, values: dict[str, Any], group: int, row: int, number: int, data: DataSettings, index: int
) -> Row:
    place, held = f"{table.file.name}#{number}", values[data.image]
    path = (held or {}).get("path") if table.pixels and not isinstance(held, str) else held
    here = () if "://" in table.file.url else (Path(table.file.url).parent,)
    folders = (*here, Path.cwd())
    within = None if data.allow_outside else here
    picture = Picture(
        *(table.file, table.stamp, table.pixels, group, row, path, path or place, folders),
        allow_urls=data.allow_urls,
        within=within,
    )
    columns = {name: json_safe(value) for name, value in values.items()}
    columns[data.image] = json_safe(path or place) if table.pixels else json_safe(path)
    mark = table.stamp if table.pixels else image_stamp(path, folders=folders)
    return Row(
        *(index, columns, picture.open),
        stamp=mark,
        read_image=picture.read,
        find_image=picture.find,
        id=place,
    )
