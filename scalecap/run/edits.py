"""Columns of a finished run that somebody edited: the run goes on from there.

A file of edits has one JSON object a line: the `row_id` of a row, and columns with their new values.

    {"row_id": "photos/1.jpg", "golden_sentences": ["A dog sleeps."]}

The same command with `edits=FILE` does the rows in it again. An edited column takes the place of what its
step wrote, and the steps that read it compute anew; the others find their replies in the cache.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalecap.data import DataError, FinishedParts, Source
from scalecap.interpreter.step import KIND_NAMES, Step, holds
from scalecap.rows import Row
from scalecap.text.suggestions import did_you_mean

Edits = dict[str, dict[str, Any]]
"""By row id: columns with their values."""


def read_edits(path: Path, steps: Sequence[Step]) -> Edits:
    """The edits in a file.

    Raises:
        DataError: it can't be read, or a line names no row, a column that no step writes, a row twice, or has
            a value that its column can't hold; the message names the line.
    """
    kinds = {
        column: kind
        for step in steps
        for column, kind in zip(step.writes, step.stage.kinds, strict=True)
        if kind != "regions"  # parts of the picture, which are made of it
    }
    found: Edits = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"edits={path} can't be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            row, columns = _read(line, f"edits={path}, line {number}", kinds)
            if row in found:
                raise DataError(f"edits={path}, line {number}: the row {row!r} stands there twice")
            found[row] = columns
    return found


def _read(line: str, where: str, kinds: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("row_id"), str) or len(record) < 2:
        raise DataError(f"{where}: expected an object with row_id and edited columns, got {line:.80}")
    row = record.pop("row_id")
    for column, value in record.items():
        if column not in kinds:
            raise DataError(
                f"{where}: no step writes a column {column!r} that can be edited{did_you_mean(column, kinds)}"
            )
        if value is not None and not holds(kinds[column], value):
            raise DataError(f"{where}: {column}: expected {KIND_NAMES[kinds[column]]}, got {value!r:.80}")
    return row, record


class Edited:
    """A source whose rows carry their edits; a part that is finished is read all the same."""

    def __init__(self, source: Source, edits: Edits) -> None:
        self._source, self._edits = source, edits
        self.columns, self.total = source.columns, source.total
        self._left = set(edits)

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            self._left.discard(row.id)
            yield replace(row, edits=edits) if (edits := self._edits.get(row.id)) else row

    def unfinished(self, finished: FinishedParts) -> Iterator[Row | range]:
        return iter(self)

    def unmatched(self) -> str:
        """A note about edits of rows that the data has not, once all rows were read; empty without any."""
        if not self._left:
            return ""
        names = ", ".join(map(repr, sorted(self._left)[:5]))
        return f"{len(self._left)} edits are of rows that are not in the data: {names}."
