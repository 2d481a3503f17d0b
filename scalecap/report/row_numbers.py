"""The numbers of a run's rows by measure, in a file: only one measure at a time is in memory."""

from array import array
from collections import defaultdict
from tempfile import TemporaryFile

import numpy as np

from scalecap.run.folder import Run

CHUNK = 4_096
"""Rows of a measure that are written at once."""


class RowNumbers:
    """Reads a run's rows once; `close` deletes the file."""

    def __init__(self, run: Run) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 (until `close`)
        self._chunks: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        """Starts and sizes in bytes of a measure's chunks."""
        waiting: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        for place, row in enumerate(run.rows()):
            for name, pair in run.numbers(row):
                waiting[name].extend((place, *pair))
                if len(waiting[name]) == 3 * CHUNK:
                    self._write(name, waiting.pop(name))
        for name, values in waiting.items():
            self._write(name, values)

    def _write(self, name: str, values: "array[float]") -> None:
        self._chunks[name].append((self._file.tell(), self._file.write(values)))

    @property
    def names(self) -> list[str]:
        """The measures that any row has."""
        return list(self._chunks)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Indices (n,) of the rows with a measure, ascending, and their pairs (n, 2) of count and of."""
        chunks = []
        for start, size in self._chunks.get(name, []):
            self._file.seek(start)
            chunks.append(np.frombuffer(self._file.read(size)))
        values = np.concatenate([*chunks, np.empty(0)]).reshape(-1, 3)
        return values[:, 0].astype(int), values[:, 1:]

    def close(self) -> None:
        self._file.close()
