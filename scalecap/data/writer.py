"""Writes finished rows: `captions.jsonl`, parquet shards for `datasets`, and other exports."""

import filecmp
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from scalecap.config.exports import SELECT, Select, WriteSettings
from scalecap.data.groups import GROUP_ROWS, Export, Sink, batches, with_images, with_source_rows
from scalecap.data.replacing import remove_others, replacing
from scalecap.data.sidecars import BesideImages, Sidecars
from scalecap.data.sinks import plugin_sinks
from scalecap.data.tar import TarWriter
from scalecap.messages import MessageCounts
from scalecap.rows import Record, Row

SHARD_ROWS = 100_000
"""Most rows of a shard."""
SHARD_BYTES = 500 * 10**6
"""Target size of a shard; it is exceeded by less than its last row group or sample."""
MAX_FIELDS = 1_000
"""Most keys of the mappings in a column, or of their values; with more, which differ from row to row, it is
JSON text."""
MAX_LEVELS = 32
"""Most mappings and lists around a value of a column; with more, which `datasets` can't read, it is JSON
text."""
ERROR = pa.struct([("step", pa.string()), ("kind", pa.string()), ("message", pa.string())])


@dataclass
class WriteResult:
    """What was not written as usual."""

    json_columns: list[str] = field(default_factory=list)
    """Columns without a common type, written to `dataset/` as JSON strings."""
    missing_images: MessageCounts = field(default_factory=MessageCounts)
    """Why images are missing from `dataset/` or `webdataset/`."""
    missing_sidecars: MessageCounts = field(default_factory=MessageCounts)
    """Why successful rows have no sidecar."""
    left_out: int | None = None
    """Rows excluded by `write.select`; None without it."""
    select_errors: MessageCounts = field(default_factory=MessageCounts)
    """Why `write.select` could not be evaluated for some of these."""


def write(
    folder: Path,
    records: Callable[[], Iterable[Record]],
    columns: Sequence[str],
    settings: WriteSettings | None = None,
    *,
    image: str = "image",
    data: Iterable[Row] | None = None,
    observe: Callable[[Record], None] | None = None,
) -> WriteResult:
    """Writes `captions.jsonl` and the exports chosen by `settings` to `folder`, in the order of the records.

    Exports of an earlier run that `settings` does not name are removed once the captions differ from theirs.
    In parquet, `flags` and columns without a common type are JSON strings. An image is left out (null in
    `dataset/`, no sample in `webdataset/`) if its file can't be read or was replaced since it was captioned.

    Args:
        records: returns an iterator over the journal's records; called once, and again if there are exports.
        columns: the steps' columns in their output order; null where a failed row lacks one.
        image: the image column.
        data: the source's rows, ordered like the records; required for image files
            (`settings.needs_images`). Without them `dataset/` has the images' names.
        observe: called with each record once, in order.

    Raises:
        OSError: a file can't be written, or a folder exists that scalecap did not write.
        DataError: another package's sink failed.
    """
    settings, written = settings or WriteSettings(), WriteResult()
    select = Select(settings.select, columns) if settings.select else None

    types, left_out = _ColumnTypes(), 0

    def exports() -> Iterator[Export]:
        for record, source in with_source_rows(records(), data or ()):
            row = _row(record, columns)
            if select is None or select.exclusion(row) is None:
                yield Export(row, record, source)

    part = folder / "captions.jsonl.part"
    with part.open("w", encoding="utf-8") as file:
        for record in records():
            if observe is not None:
                observe(record)
            row = _row(record, columns)
            if "parquet" in settings.format:
                types.add(row)
            if select is not None and (exclusion := select.exclusion(row)):
                flag, reason = exclusion
                left_out += 1
                if reason:
                    written.select_errors.add(reason)
                row["flags"] = {**row["flags"], SELECT: [flag]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    written.left_out = None if select is None else left_out
    captions = folder / "captions.jsonl"
    if not (captions.exists() and filecmp.cmp(part, captions, shallow=False)):
        remove_others(folder, settings.exports)
    os.replace(part, captions)
    files = settings.embeds_images and data is not None
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if "parquet" in settings.format:
            found = types.final()
            if settings.image == "none":
                found.pop(image, None)
            written.json_columns = [
                name for name, type_ in found.items() if type_ is None and name != "flags"
            ]
            part = stack.enter_context(replacing(folder / "dataset", unmarked=True))  # 0.1.0 left none
            sinks.append(stack.enter_context(closing(_Shards(part, found, image if files else None))))
        if "webdataset" in settings.format and data is not None:
            part = stack.enter_context(replacing(folder / "webdataset"))
            sinks.append(stack.enter_context(closing(TarWriter(part, SHARD_ROWS, SHARD_BYTES))))
        if settings.sidecars and not settings.beside:
            part = stack.enter_context(replacing(folder / "sidecars"))
            sinks.append(Sidecars(part, settings, written.missing_sidecars))
        elif settings.beside and data is not None:
            sinks.append(BesideImages(image, settings, written.missing_sidecars))
        sinks += stack.enter_context(plugin_sinks(folder, settings))
        read = data is not None and (files or "webdataset" in settings.format)
        images = written.missing_images
        groups = with_images(exports(), image, images) if read else batches(exports(), GROUP_ROWS)
        for group in groups if sinks else ():
            for sink in sinks:
                sink.add(group)
    return written


def _row(record: Record, columns: Sequence[str]) -> dict[str, Any]:
    """The row of `captions.jsonl`."""
    return {
        "row_id": record.get("id"),
        **{name: value for name, value in record["input"].items() if name != "row_id"},
        **{name: record["columns"].get(name) for name in columns},
        "flags": record["flags"],
        "error": record["error"],
    }


class _Shards:
    """Sink that writes `train-00000-of-00003.parquet` …, named once all are written."""

    def __init__(self, folder: Path, types: Mapping[str, pa.DataType | None], image: str | None) -> None:
        """`types` as of `_ColumnTypes.final`; `image` is the column to fill with image files, if any."""
        self._folder, self._image = folder, image
        self._column_types = dict(types)
        if image:
            self._column_types[image] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        self._schema = pa.schema([(name, type_ or pa.string()) for name, type_ in self._column_types.items()])
        if image:
            # A slow import. `datasets` infers the features of all other columns from their types.
            from datasets import Features, Image

            features = Features({**Features.from_arrow_schema(self._schema), image: Image()})
            self._schema = self._schema.with_metadata(features.arrow_schema.metadata)
        self._count = 0
        self._begin()

    def close(self) -> None:
        self._end()
        for number in range(self._count):
            name = f"train-{number:05d}-of-{self._count:05d}.parquet"
            self._path(number).rename(self._folder / name)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.parquet"

    def _begin(self) -> None:
        self._file: BinaryIO = self._path(self._count).open("wb")
        # A page, the smallest unit that a reader holds, ends at a batch.
        self._writer = pq.ParquetWriter(self._file, self._schema, write_batch_size=16)
        self._count += 1
        self._rows = 0

    def _end(self) -> None:
        with self._file:
            self._writer.close()

    def add(self, group: Sequence[Export]) -> None:
        """Writes a row group, to a new shard if the current one is full."""
        rows = [self._row(each) for each in group]
        if self._rows >= SHARD_ROWS or self._file.tell() >= SHARD_BYTES:
            self._end()
            self._begin()
        arrays = [
            pa.array([_cell(row.get(name), type_) for row in rows], type=self._schema.field(name).type)
            for name, type_ in self._column_types.items()
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows += len(group)

    def _row(self, each: Export) -> Mapping[str, Any]:
        if self._image is None:
            return each.row
        cell = each.row.get(self._image)
        name = cell.get("path") if isinstance(cell, Mapping) else cell
        image = {"bytes": each.image_file, "path": name} if each.image_file else None
        return {**each.row, self._image: image}


def _cell(value: Any, type_: pa.DataType | None) -> Any:
    if type_ is None and value is not None:
        return json.dumps(value, ensure_ascii=False)
    return value


class _NoCommonType(Exception):
    """The values have no common parquet type."""


_EXACT_INT = pa.int32()
"""While types are inferred: integers that float64 represents exactly."""


class _ColumnTypes:
    """The type of each column, inferred row by row; None (a JSON string) where there is no common type."""

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType | None] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            before = self._types.get(name, pa.null())
            if before is not None:
                try:
                    self._types[name] = _common_type(before, _type(value))
                except _NoCommonType:
                    self._types[name] = None

    def final(self) -> dict[str, pa.DataType | None]:
        found = dict.fromkeys(self._types)
        for name, type_ in self._types.items():
            with suppress(_NoCommonType):
                found[name] = None if type_ is None else _final_type(type_)
        return {**found, "flags": None, "error": ERROR}


def _type(value: Any, levels: int = MAX_LEVELS) -> pa.DataType:
    below = functools.partial(_type, levels=levels - 1)
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int() if abs(value) <= 2**53:
            return _EXACT_INT
        case int() if -(2**63) <= value < 2**63:
            return pa.int64()
        case float():
            return pa.float64()
        case str():
            return pa.string()
        case list() if levels:
            return pa.list_(functools.reduce(_common_type, map(below, value), pa.null()))
        case dict() if levels and len(value) <= MAX_FIELDS:
            return pa.struct([(name, below(each)) for name, each in value.items()])
    raise _NoCommonType


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that can represent values of both."""
    if pa.types.is_null(one) or one == other:
        return other
    if pa.types.is_null(other):
        return one
    pair = {one, other}
    if pair == {_EXACT_INT, pa.int64()}:
        return pa.int64()
    if pair == {_EXACT_INT, pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common_type(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = _common_type(fields.get(field.name, pa.null()), field.type)
        if len(fields) <= MAX_FIELDS:
            return pa.struct(list(fields.items()))
    raise _NoCommonType


def _final_type(type_: pa.DataType) -> pa.DataType:
    """The final type: int64 for exact integers, string where all values are null.

    Raises:
        _NoCommonType: for a record without fields, which parquet does not have.
    """
    if pa.types.is_null(type_):
        return pa.string()
    if type_ == _EXACT_INT:
        return pa.int64()
    if pa.types.is_list(type_):
        return pa.list_(_final_type(type_.value_type))
    if pa.types.is_struct(type_):
        if not type_.num_fields:
            raise _NoCommonType
        return pa.struct([(field.name, _final_type(field.type)) for field in type_])
    return type_
