"""Opens the configured data source; code that all sources share."""

import logging
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import islice, takewhile
from typing import Any, TypeVar

from scalecap import plugins
from scalecap.config.settings import DataSettings
from scalecap.data import DataError, FinishedParts, Source, nothing_finished
from scalecap.data.seen import Seen
from scalecap.data.shard import Shard, parse_shard
from scalecap.rows import Row, RowError, unreadable_row
from scalecap.text.suggestions import did_you_mean

log = logging.getLogger(__name__)
T = TypeVar("T")

SOURCES = ("jsonl", "folder", "hub", "webdataset", "parquet", "scenes")
SCHEMA_SAMPLE_ROWS = 64
"""Rows read to infer the columns of a source without a schema."""
MAX_DEPTH = 100
"""Most mappings and lists around a value; hostile data or replies could exceed Python's stack."""


@dataclass
class RowSource:
    """A `Source` made of functions that iterate over its rows.

    A source with parts (tar shards, row groups) sets `iterate_unfinished`, which skips finished ones unread.
    A source that can seek sets `iterate_shard`, so that images of other shards' rows are not read.
    """

    columns: Mapping[str, str]
    total: int | None
    iterate: Callable[[], Iterator[Row]]
    iterate_unfinished: Callable[[FinishedParts], Iterator[Row | range]] | None = None
    iterate_shard: Callable[[Shard], Iterator[Row]] | None = None

    def __iter__(self) -> Iterator[Row]:
        return self.iterate()

    def unfinished(self, finished: FinishedParts) -> Iterator[Row | range]:
        return self.iterate_unfinished(finished) if self.iterate_unfinished else self.iterate()


def partitioned(iterate_unfinished: Callable[[FinishedParts], Iterator[Row | range]]) -> RowSource:
    """A source whose rows come in parts, of which a new run skips none."""

    def iterate() -> Iterator[Row]:
        return (row for row in iterate_unfinished(nothing_finished) if isinstance(row, Row))

    return RowSource({}, None, iterate, iterate_unfinished)


def open_source(data: DataSettings) -> Source:
    """Opens `data.source`, limited to its first `data.limit` rows and to `data.shard` of these.

    Raises:
        DataError: there is no such source, or it can't be read.
    """
    if data.source == "memory":
        raise DataError("the data was in memory and is gone; captioner.report() shows its images")
    rows = _open_rows(data)
    if data.id:
        rows = _with_ids_from(data.id, rows)
    if limit := data.limit:
        total = None if rows.total is None else min(rows.total, limit)
        iterate_shard = partial(_shard_below, limit, rows.iterate_shard) if rows.iterate_shard else None
        rows = RowSource(
            rows.columns, total, partial(islice, rows, limit), partial(_take, rows, limit), iterate_shard
        )
    if data.shard:
        shard = parse_shard(data.shard)
        parts = partial(shard.skip_finished, rows.iterate_unfinished) if rows.iterate_unfinished else None
        iterate = partial(rows.iterate_shard, shard) if rows.iterate_shard else partial(shard.filter, rows)
        rows = RowSource(rows.columns, shard.total(rows.total), iterate, parts)
    return rows


def _open_rows(data: DataSettings) -> RowSource:
    """Opens a source of this package or, as `package/name`, of another; only this one is imported."""
    name = data.source
    if name in SOURCES:
        if data.args:
            key = next(iter(data.args))
            raise DataError(f"data.args.{key} is for sources of other packages, and the source is {name}")
        if name == "scenes" and data.path:
            raise DataError(
                f"data.path={data.path}: data=scenes reads no path; name its source, as in data=folder"
            )
        if name != "scenes" and data.count is not None:
            raise DataError(f"data.count={data.count} generates scenes; use data.limit={data.count}")
        rows: RowSource = getattr(import_module(f"scalecap.data.{name}"), f"open_{name}")(data)
        return rows
    if name not in (others := plugins.names("sources")):
        raise DataError(f"unknown data source {name!r}{did_you_mean(name, [*SOURCES, *others])}")
    try:
        source: Source = plugins.load("sources", name)(data)
    except DataError:
        raise
    except plugins.PluginError as error:
        raise DataError(f"data.source={name}: {error}") from error
    except Exception as error:  # another package may raise anything
        raise DataError(f"data.source={name}: {type(error).__name__}: {error}") from error
    named = partial(_read, name)
    if not isinstance(source, RowSource):
        return RowSource(
            source.columns, source.total, partial(named, source.__iter__), partial(named, source.unfinished)
        )
    return replace(
        source,
        iterate=partial(named, source.iterate),
        iterate_unfinished=source.iterate_unfinished and partial(named, source.iterate_unfinished),
        iterate_shard=source.iterate_shard and partial(named, source.iterate_shard),
    )


def _read(name: str, rows: Callable[..., Iterator[T]], *given: Any) -> Iterator[T]:
    """The rows of another package's source; whatever it raises becomes a DataError with its name."""
    try:
        yield from rows(*given)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"data.source={name}: {type(error).__name__}: {error}") from error


def _with_ids_from(column: str, rows: RowSource) -> RowSource:
    """The rows with a column's values as ids. Every row is read, to find duplicates."""
    if column not in rows.columns:
        hint = did_you_mean(column, rows.columns)
        raise DataError(f"data.id={column}: the data has no such column{hint}")

    def iterate() -> Iterator[Row]:
        seen = Seen()
        for row in rows:
            if row.error:
                yield replace(row, id=_unused_id("", row.index, seen))
                continue
            value = row.columns.get(column)
            text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
            if text and seen.add(text):
                yield replace(row, id=text)
                continue
            kind, what = (
                ("repeated_id", "repeats the id of an earlier row") if text else ("no_id", "has no id")
            )
            message = (
                f"row {row.index} {what}: {column!r} is {value!r:.80}; expected unique strings or integers"
            )
            error = RowError(kind, message)
            yield unreadable_row(row.index, row.columns, error, id=_unused_id(text, row.index, seen))

    return RowSource(rows.columns, rows.total, iterate)


def _unused_id(text: str, index: int, seen: Seen) -> str:
    """A unique id for a row without a valid one."""
    text = f"{text}#{index}"
    while not seen.add(text):
        text += "#"
    return text


def _shard_below(limit: int, iterate_shard: Callable[[Shard], Iterator[Row]], shard: Shard) -> Iterator[Row]:
    return takewhile(lambda row: row.index < limit, iterate_shard(shard))


def _take(rows: Source, limit: int, finished: FinishedParts) -> Iterator[Row | range]:
    """The first `limit` rows; the rows of a skipped part count too."""
    left = limit
    for each in rows.unfinished(finished):
        taken = each[:left] if isinstance(each, range) else each
        yield taken
        left -= len(taken) if isinstance(taken, range) else 1
        if not left:
            return


def rows_until_error(source: Source) -> Iterator[Row]:
    """The rows up to the first DataError, which is logged as a warning."""
    try:
        yield from source
    except DataError as error:
        log.warning("images of the remaining rows are missing from the data set: %s", error)


def required_path(data: DataSettings) -> str:
    """`data.path`. Raises DataError if it is not set."""
    if not data.path:
        raise DataError(f"data={data.source} requires data.path=…")
    return data.path


def infer_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The kind of each column (`text`, `texts`, `number`, `any`), inferred from a few rows; ignores nulls."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, set()).update(() if value is None else (_kind(value),))
    return {name: found.pop() if len(found) == 1 else "any" for name, found in seen.items()}


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return "number"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "texts"
    return "any"


def escaped_name(text: str) -> str:
    """An injective encoding of a file name as valid UTF-8: backslashes are doubled, and a byte that is not
    UTF-8 (in Python a lone surrogate) becomes `\\udcXX`."""
    return text.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()


def json_safe(value: Any, depth: int = 0) -> Any:
    """Converts a value to one that JSON and UTF-8 can represent.

    Images and other bytes are dropped: `{"bytes", "path"}` (an undecoded media cell) becomes `{"path"}`, or
    null without a path. NaN, infinities and integers beyond the range of floats become null, and so does what
    is nested more than MAX_DEPTH deep; lone surrogates become `?`, and types that JSON lacks (dates,
    decimals) strings.

    Args:
        depth: the number of mappings and lists around the value.
    """
    if value is None:
        return value
    if isinstance(value, int):  # or bool
        return value if abs(value) <= sys.float_info.max else None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == MAX_DEPTH:
        return None
    if isinstance(value, Mapping):
        if value.keys() == {"bytes", "path"}:
            return {"path": json_safe(value["path"])} if value["path"] else None
        return {json_safe(str(name)): json_safe(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(each, depth + 1) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return json_safe(value.tolist(), depth)
    return json_safe(str(value))
