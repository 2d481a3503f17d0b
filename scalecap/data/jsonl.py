"""`data=jsonl`: one JSON object a line, its picture's path under `data.image`.

A line that can't be read is a row with an error; blank lines are none. Relative paths start at
the file's own folder, and then at the working folder (`data.relative_to=cwd`: only there).
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.images import find_image, image_stamp, open_image, read_image
from scalecap.data.sources import SCHEMA_SAMPLE_ROWS, RowSource, infer_kinds, json_safe, required_path
from scalecap.rows import Row, RowError, unreadable_row
from scalecap.text.suggestions import did_you_mean


def open_jsonl(data: DataSettings) -> RowSource:
    """The rows of a JSON lines file (UTF-8). Raises DataError for a file that holds none."""
    path = Path(required_path(data)).expanduser()
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder: name the file, or use data=folder for pictures in it")
    try:
        total = sum(1 for _ in _lines(path))
    except OSError as error:
        raise DataError(f"can't read {str(path)!r}: {error.strerror}; data.path names the file") from error
    if not total:
        raise DataError(f"{str(path)!r} holds no rows: write one JSON object a line")
    own = Path.cwd() if data.relative_to == "cwd" else path.parent.absolute()
    folders = list(dict.fromkeys([own, Path.cwd()]))
    rows = RowSource({}, total, partial(_rows, path, data, folders))
    looked = list(islice(rows, SCHEMA_SAMPLE_ROWS))
    read = [row for row in looked if row.error is None or row.error.kind == "missing_key"]
    if not read:
        raise DataError(f"no line of {str(path)!r} is a row (looked at {len(looked)}); {looked[0].error}")
    if all(row.error for row in read):
        raise DataError(f"{read[0].error}; data.image names the key of the picture")
    return RowSource(infer_kinds(row.columns for row in read), total, rows.iterate)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1 on."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line := (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip():
                yield number, line


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
            columns[data.image] = None  # it is the pixels
        opened = partial(open_image, cell, folders=folders, allow_urls=data.allow_urls)
        within = None if data.allow_outside else folders[:1]
        read = partial(read_image, cell, folders=folders, allow_urls=data.allow_urls, within=within)
        found, mark = (
            partial(find_image, cell, folders=folders, within=within),
            image_stamp(cell, folders=folders),
        )
        yield Row(index, json_safe(columns), opened, stamp=mark, read_image=read, find_image=found)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError("invalid_json", f"{where} is not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RowError("invalid_json", f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowError("invalid_json", f"{where} is not a JSON object but a {type(value).__name__}")
    return value
