"""The finished rows as files: `captions.jsonl`, and a parquet data set that `datasets` loads."""

import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 1000
"""Rows held in memory at once."""
ERROR = pa.struct([("step", pa.string()), ("kind", pa.string()), ("message", pa.string())])

Rows = Callable[[], Iterable[Mapping[str, Any]]]


def write(folder: Path, records: Rows, columns: Sequence[str]) -> None:
    """Writes `captions.jsonl` and `dataset/` in `folder`, in the order of the records.

    A record is {input, columns, flags, error}, as the journal holds it; `records` gives them anew on
    each call. `columns` are the steps' columns in the order wanted; a row that failed has null in
    those it lacks. In parquet, `flags` and a column whose rows do not share a type are JSON text.
    """

    def rows() -> Iterator[dict[str, Any]]:
        for record in records():
            written = record["columns"]
            yield {
                **record["input"],
                **{name: written.get(name) for name in columns},
                "flags": record["flags"],
                "error": record["error"],
            }

    part = folder / "captions.jsonl.part"
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    os.replace(part, folder / "captions.jsonl")
    _write_parquet(folder, rows)


def _write_parquet(folder: Path, rows: Rows) -> None:
    part = folder / "dataset.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    types = _types(rows)
    schema = pa.schema([(name, type_ or pa.string()) for name, type_ in types.items()])
    with pq.ParquetWriter(part / "train-00000-of-00001.parquet", schema) as writer:
        for batch in _batches(rows()):
            arrays = [
                pa.array([_cell(row.get(name), types[name]) for row in batch], type=schema.field(name).type)
                for name in types
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    shutil.rmtree(folder / "dataset", ignore_errors=True)
    part.rename(folder / "dataset")


def _cell(value: Any, type_: pa.DataType | None) -> Any:
    if type_ is None and value is not None:
        return json.dumps(value, ensure_ascii=False)
    return value


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, BATCH)):
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
