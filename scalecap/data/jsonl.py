"""`data=jsonl`: one JSON object per line, with the image's path under the key `data.image`.

A malformed line is a row with an error; blank lines are skipped. Relative paths are resolved against the
file's folder, then against the working directory (`data.relative_to=cwd`: only against the latter).
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.images import image_row
from scalecap.data.sources import SCHEMA_SAMPLE_ROWS, RowSource, infer_kinds, json_safe, required_path
from scalecap.rows import Row, RowError, unreadable_row
from scalecap.text.suggestions import did_you_mean


def open_jsonl(data: DataSettings) -> RowSource:
    """The rows of a UTF-8 JSON lines file.

    Raises:
        DataError: the file can't be read or has no valid row.
    """
    path = Path(required_path(data)).expanduser()
    if path.is_dir():
        raise DataError(
            f"expected a file, got the folder {str(path)!r}; use data=folder for the images in it"
        )
    total = sum(1 for _ in _lines(path))
    if not total:
        raise DataError(f"{str(path)!r} has no rows; expected one JSON object per line")
    own = Path.cwd() if data.relative_to == "cwd" else path.parent.absolute()
    folders = list(dict.fromkeys([own, Path.cwd()]))
    rows = RowSource({}, total, partial(_rows, path, data, folders))
    first = list(islice(rows, SCHEMA_SAMPLE_ROWS))
    read = [row for row in first if row.error is None or row.error.kind == "missing_key"]
    if not read:
        raise DataError(f"none of the first {len(first)} lines of {str(path)!r} is a row: {first[0].error}")
    if all(row.error for row in read):
        raise DataError(f"{read[0].error}; set data.image to the key of the image's path")
    return RowSource(infer_kinds(row.columns for row in read), total, rows.iterate)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines with their line numbers, from 1. Raises DataError if the file can't be read."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line := (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"can't read data.path={str(path)!r}: {error.strerror}") from error


def _rows(path: Path, data: DataSettings, folders: list[Path]) -> Iterator[Row]:
    for index, (number, line) in enumerate(_lines(path)):
        where = f"line {number} of {str(path)!r}"
        columns: dict[str, Any] = {}
        try:
            columns = _parsed(line, where)
            if data.image not in columns:
                hint = did_you_mean(data.image, columns)
                raise RowError("missing_key", f"{where} has no key {data.image!r}{hint}")
        except RowError as error:
            yield unreadable_row(index, json_safe(columns), error)
            continue
        cell = columns[data.image]
        if isinstance(cell, str) and cell.startswith("data:"):
            columns[data.image] = None  # the pixels themselves
        yield image_row(
            *(index, json_safe(columns), cell),
            folders=folders,
            allow_urls=data.allow_urls,
            within=None if data.allow_outside else folders[:1],
        )


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError("invalid_json", f"{where} is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RowError("invalid_json", f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError("invalid_json", f"{where}: expected a JSON object, got {type(value).__name__}")
    return value
