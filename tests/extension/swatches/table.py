"""A sink: `write.format=[parquet,swatches/csv]` writes the captions as a table, too."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scalecap.config.exports import WriteSettings
from scalecap.data.groups import Export


@contextmanager
def open_csv(folder: Path, settings: WriteSettings) -> Iterator["Table"]:
    """`captions.csv` in the folder, complete when the block ends."""
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row_id", "final_caption", "bytes"])
        yield Table(writer)


class Table:
    """Takes the rows, group by group."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, group: Sequence[Export]) -> None:
        for each in group:
            size = len(each.image_file) if each.image_file else None  # there with write.image=bytes
            self._writer.writerow([each.row["row_id"], each.row["final_caption"], size])
