"""The finished rows as files: `captions.jsonl`, and parquet shards that `datasets` loads."""

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from scalecap.data import Row
from scalecap.data.images import Fingerprint, name_of, open_image
from scalecap.messages import Messages

BATCH = 1000
"""Rows held in memory at once, which are a row group."""
GROUP_BYTES = 64 * 10**6
"""Pictures held in memory at once: a row group with so many bytes is full."""
SHARD_ROWS = 100_000
"""A shard with so many rows is full."""
SHARD_BYTES = 500 * 10**6
"""A shard of so many bytes is full; it is longer by less than its last row group."""
READERS = 16
"""Pictures read at the same time."""
ERROR = pa.struct([("step", pa.string()), ("kind", pa.string()), ("message", pa.string())])

T = TypeVar("T")
Record = Mapping[str, Any]
Rows = Callable[[], Iterable[Record]]


class Written(NamedTuple):
    """What the reader of the files must know."""

    mixed: list[str]
    """Columns whose rows share no type, which are JSON text in `dataset/`."""
    missing: Messages
    """Why pictures that a step looked at are not in `dataset/`."""


def write(
    folder: Path,
    records: Rows,
    columns: Sequence[str],
    *,
    leave_out: str | None = None,
    pictures: tuple[str, Iterable[Row]] | None = None,
) -> Written:
    """Writes `captions.jsonl` and `dataset/` in `folder`, in the order of the records.

    A record is as the journal holds it; `records` gives them anew on each call. `row_id` is the row's id,
    null in records of versions that had none. `columns` are the steps' columns in the order wanted; a row
    that failed has null in those it lacks. In parquet, `flags` and a column whose rows do not share a type
    are JSON text.

    Args:
        leave_out: a column that `dataset/` lacks.
        pictures: a column that is the pictures' files in `dataset/`, and the data's rows in the order of the
            records. It is null where the row is another one now, and where its file can't be read, is no
            picture or another one than was captioned.
    """
    missing = Messages()

    def rows() -> Iterator[dict[str, Any]]:
        for record in records():
            written = record["columns"]
            yield {
                "row_id": record.get("id"),
                **{name: value for name, value in record["input"].items() if name != "row_id"},
                **{name: written.get(name) for name in columns},
                "flags": record["flags"],
                "error": record["error"],
            }

    part = folder / "captions.jsonl.part"
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    os.replace(part, folder / "captions.jsonl")
    types = _types(rows)
    if leave_out in types:
        del types[leave_out]
    groups = _batches(rows(), BATCH)
    if pictures:
        image, own = pictures
        groups = _filled(rows(), image, _paired(records(), own), missing)
    with _Shards(folder / "dataset", types, image=pictures and pictures[0]) as shards:
        for group in groups:
            shards.add(group)
    return Written([name for name, type_ in types.items() if type_ is None and name != "flags"], missing)


class _Shards:
    """`train-00000-of-00003.parquet` …, in place of what was in the folder, once all are written."""

    def __init__(self, folder: Path, types: Mapping[str, pa.DataType | None], image: str | None) -> None:
        """`types` as `_types` finds them; `image` is the column of pictures' files."""
        from datasets import Features, Image

        self._folder, self._part = folder, folder.with_name(folder.name + ".part")
        self._types = {**types, **({image: Image().pa_type} if image else {})}
        schema = pa.schema([(name, type_ or pa.string()) for name, type_ in self._types.items()])
        features = Features.from_arrow_schema(schema)
        if image:
            features[image] = Image()
        self._schema = schema.with_metadata(features.arrow_schema.metadata)
        self._count = 0

    def __enter__(self) -> Self:
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir()
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end()
        if kind is None:
            for number in range(self._count):
                name = f"train-{number:05d}-of-{self._count:05d}.parquet"
                self._path(number).rename(self._part / name)
            shutil.rmtree(self._folder, ignore_errors=True)
            self._part.rename(self._folder)

    def _path(self, number: int) -> Path:
        return self._part / f"{number}.parquet"

    def _begin(self) -> None:
        self._file: BinaryIO = self._path(self._count).open("wb")
        # Pages end at such a batch, and a page is the least that a reader holds.
        self._writer = pq.ParquetWriter(self._file, self._schema, write_batch_size=16)
        self._count += 1
        self._rows = 0

    def _end(self) -> None:
        with self._file:
            self._writer.close()

    def add(self, group: Sequence[Mapping[str, Any]]) -> None:
        """Writes a row group, in a new shard if the one before is full."""
        if self._rows >= SHARD_ROWS or self._file.tell() >= SHARD_BYTES:
            self._end()
            self._begin()
        arrays = [
            pa.array([_cell(row.get(name), type_) for row in group], type=self._schema.field(name).type)
            for name, type_ in self._types.items()
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows += len(group)


def _paired(records: Iterable[Record], rows: Iterable[Row]) -> Iterator[tuple[Record, Row | None]]:
    """Each record with the data's row in its place, if there is one."""
    found = iter(rows)
    row: Row | None = None
    for record in records:
        while row is None or row.index < record["index"]:
            if (row := next(found, None)) is None:
                break
        yield record, row if row and row.index == record["index"] else None


def _filled(
    rows: Iterable[dict[str, Any]],
    image: str,
    paired: Iterable[tuple[Record, Row | None]],
    missing: Messages,
) -> Iterator[list[dict[str, Any]]]:
    """Row groups with the files of their pictures in place of their names; the reasons of those that lack."""
    group: list[dict[str, Any]] = []
    size = 0
    with ThreadPoolExecutor(READERS, "pictures") as pool:
        for batch in _batches(zip(rows, paired, strict=True), READERS):
            contents = pool.map(partial(_content, image), (pair for _, pair in batch))
            for (row, _), content in zip(batch, contents, strict=True):
                cell = row.get(image)
                name = cell.get("path") if isinstance(cell, Mapping) else cell
                if isinstance(content, str):
                    missing.add(content)
                    content = None
                group.append({**row, image: {"bytes": content, "path": name} if content else None})
                size += len(content or b"")
                if size >= GROUP_BYTES or len(group) >= BATCH:
                    yield group
                    group, size = [], 0
    if group:
        yield group


def _content(image: str, pair: tuple[Record, Row | None]) -> bytes | str | None:
    """A picture's file, or why it is not to be had; None where its row says so itself."""
    record, row = pair
    if record["error"] and record["error"]["step"] in (None, "image"):
        return None
    if row is None or row.id != record.get("id", row.id):
        return "the data has another row there now"
    if row.read_image is None:
        return "the data does not give the files of its pictures"
    name = name_of(record["input"].get(image))
    captioned = Fingerprint(record.get("image") or "", record.get("stamp") or "", name)
    try:
        content = row.read_image()
        hash = open_image({"bytes": content, "path": name}).hash
        if not captioned.matches(Fingerprint(hash, row.stamp, name_of(row.columns.get(image)))):
            return "it was replaced after it was captioned"
    except Exception as error:  # whatever became of it since its row was done
        return str(error)
    return content


def _cell(value: Any, type_: pa.DataType | None) -> Any:
    if type_ is None and value is not None:
        return json.dumps(value, ensure_ascii=False)
    return value


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class _Mixed(Exception):
    """Values that share no type parquet has."""


_EXACT = pa.int32()
"""Stands for integers that are exact as floats too, while types are being found."""


def _types(rows: Rows) -> dict[str, pa.DataType | None]:
    """The type of each column; None where its rows share none, so that it is JSON text."""
    types: dict[str, pa.DataType | None] = {}
    for row in rows():
        for name, value in row.items():
            before = types.get(name, pa.null())
            if before is not None:
                try:
                    types[name] = _common(before, _type(value))
                except _Mixed:
                    types[name] = None
    found = {name: type_ and _settled(type_) for name, type_ in types.items()}
    return {**found, "flags": None, "error": ERROR}


def _type(value: Any) -> pa.DataType:
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int() if abs(value) <= 2**53:
            return _EXACT
        case int() if -(2**63) <= value < 2**63:
            return pa.int64()
        case float():
            return pa.float64()
        case str():
            return pa.string()
        case list():
            return pa.list_(functools.reduce(_common, map(_type, value), pa.null()))
        case dict() if value:
            return pa.struct([(name, _type(each)) for name, each in value.items()])
    raise _Mixed


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both."""
    if pa.types.is_null(one) or one == other:
        return other
    if pa.types.is_null(other):
        return one
    pair = {one, other}
    if pair == {_EXACT, pa.int64()}:
        return pa.int64()
    if pair == {_EXACT, pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _common(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    raise _Mixed


def _settled(type_: pa.DataType) -> pa.DataType:
    """The type with text in place of unknown."""
    if pa.types.is_null(type_):
        return pa.string()
    if type_ == _EXACT:
        return pa.int64()
    if pa.types.is_list(type_):
        return pa.list_(_settled(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _settled(field.type)) for field in type_])
    return type_
