"""The finished rows as files: `captions.jsonl`, and a parquet data set that `datasets` loads."""

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


def _types(rows: Rows) -> dict[str, pa.DataType | None]:
    """The type of each column; None where its rows share none, so that it is JSON text."""
    types: dict[str, pa.DataType | None] = {}
    for batch in _batches(rows()):
        for name in dict.fromkeys(name for row in batch for name in row):
            if name in types and types[name] is None:
                continue
            try:
                found = pa.infer_type([row.get(name) for row in batch])
                types[name] = _common(types[name], found) if name in types else found
            except (pa.ArrowException, OverflowError):
                types[name] = None
    fixed = {"flags": None, "error": ERROR}
    kept = {name: _settled(type_) for name, type_ in types.items() if name not in fixed}
    return {**kept, **fixed}


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that holds both; ArrowException when there is none."""
    schemas = [pa.schema([("", each)]) for each in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("").type


def _settled(type_: pa.DataType | None) -> pa.DataType | None:
    """The type with text in place of unknown, or None where parquet can't hold it (an empty record)."""
    if type_ is None:
        return None
    if pa.types.is_null(type_):
        return pa.string()
    if pa.types.is_list(type_):
        inner = _settled(type_.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(type_):
        fields = [(field.name, _settled(field.type)) for field in type_]
        return pa.struct(fields) if fields and all(inner is not None for _, inner in fields) else None
    return type_
