"""Edits by hand: columns of a finished run are replaced, and the run is redone from there.

A file of edits has one JSON object a line: the `row_id` of a row, and columns with their new values.

    {"row_id": "photos/1.jpg", "golden_sentences": ["A dog sleeps."]}

The same command with `edits=FILE` redoes these rows. An edited column replaces what its step wrote, and the
steps that read it are computed again; the replies of all others come from the cache.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalecap.data import DataError, FinishedParts, Source
from scalecap.data.files import error_text
from scalecap.data.sources import json_safe
from scalecap.interpreter.step import KIND_NAMES, Step, is_of_kind
from scalecap.rows import Row
from scalecap.text.suggestions import did_you_mean

Edits = dict[str, dict[str, Any]]
"""By row id: the edited columns with their values."""


def read_edits(path: Path, steps: Sequence[Step]) -> Edits:
    """Reads a file of edits.

    Raises:
        DataError: it can't be read, or a line has no row id, repeats one, names a column that no step writes,
            or has a value of the wrong type; the message names the line.
    """
    kinds = {
        column: kind
        for step in steps
        for column, kind in zip(step.writes, step.stage.kinds, strict=True)
        if kind != "regions"  # parts of the image, which have no JSON form
    }
    found: Edits = {}
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # JSON may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"edits={path} can't be read: {error_text(error)}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            row, columns = _read(line, f"edits={path}, line {number}", kinds)
            if row in found:
                raise DataError(f"edits={path}, line {number}: row {row!r} is repeated")
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
        if value is not None and not is_of_kind(kinds[column], value):
            raise DataError(f"{where}: {column}: expected {KIND_NAMES[kinds[column]]}, got {value!r:.80}")
    return row, json_safe(record)


class Edited:
    """A source whose rows carry their edits. Finished parts are read too, since edits may be in them."""

    def __init__(self, source: Source, edits: Edits) -> None:
        self._source, self._edits = source, edits
        self.columns, self.total = source.columns, source.total
        self._unmatched = set(edits)

    def __iter__(self) -> Iterator[Row]:
        for row in self._source:
            self._unmatched.discard(row.id)
            yield replace(row, edits=edits) if (edits := self._edits.get(row.id)) else row

    def unfinished(self, finished: FinishedParts) -> Iterator[Row | range]:
        return iter(self)

    def unmatched(self) -> str:
        """A note about edits of rows that are not in the data, once all rows were read; empty if none."""
        if not self._unmatched:
            return ""
        names = ", ".join(map(repr, sorted(self._unmatched)[:5]))
        return f"Rows of edits that are not in the data ({len(self._unmatched)}): {names}."
