"""`webdataset/`: tars of samples, a picture's file and its row as JSON each, for the webdataset library.

A sample's key is its row's number, so no text of the data becomes a name. Rows that failed, and pictures that
could not be read, make no sample.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image as Pillow

from scalecap.data.groups import Export
from scalecap.data.replacing import replacing

_SUFFIXES = {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2", "tiff": "tif"}
"""Where a format is not its own suffix."""


class TarWriter:
    """`train-00000.tar` … in a folder; the next begins where one has so many samples or bytes."""

    def __init__(self, folder: Path, samples: int, size: int) -> None:
        self._folder, self._most, self._size = folder, samples, size
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._file: BinaryIO = (self._folder / f"train-{self._count:05d}.tar").open("wb")
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._count += 1
        self._samples = 0

    def close(self) -> None:
        with self._file:
            self._tar.close()

    def add(self, group: Sequence[Export]) -> None:
        for each in group:
            if each.picture is None or each.row["error"] is not None:
                continue
            if self._samples >= self._most or self._file.tell() >= self._size:
                self.close()
                self._begin()
            key = f"{each.record['index']:09d}"
            self._write(f"{key}.{_suffix(each.picture)}", each.picture)
            self._write(f"{key}.json", json.dumps(each.row, ensure_ascii=False).encode())
            self._samples += 1

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them


@contextmanager
def tar_shards(folder: Path, *, samples: int, size: int) -> Iterator[TarWriter]:
    """Takes the rows that become samples, and puts the tars in place of those that were there."""
    with replacing(folder) as part:
        written = TarWriter(part, samples, size)
        try:
            yield written
        finally:
            written.close()


def _suffix(picture: bytes) -> str:
    """What a file of the picture's format is called by, whatever its name in the data was."""
    with Pillow.open(io.BytesIO(picture)) as opened:
        name = (opened.format or "bin").lower()
    return _SUFFIXES.get(name, name)
