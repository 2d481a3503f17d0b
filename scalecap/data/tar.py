"""`webdataset/`: tar shards whose samples are an image file and its row as JSON, for the webdataset library.

A sample's key is its row's index, so that no text of the data becomes a file name. Failed rows and unreadable
images are left out.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image as Pillow

from scalecap.data.groups import Export

_SUFFIXES = {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2", "tiff": "tif"}
"""File extensions that differ from Pillow's format names."""


class TarWriter:
    """Sink that writes `train-00000.tar` …, each with at most `samples` samples or about `size` bytes."""

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
            if each.image_file is None or each.row["error"] is not None:
                continue
            if self._samples >= self._most or self._file.tell() >= self._size:
                self.close()
                self._begin()
            key = f"{each.record['index']:09d}"
            self._write(f"{key}.{_suffix(each.image_file)}", each.image_file)
            self._write(f"{key}.json", json.dumps(each.row, ensure_ascii=False).encode())
            self._samples += 1

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members


def _suffix(image: bytes) -> str:
    """The file extension of the image's actual format."""
    with Pillow.open(io.BytesIO(image)) as opened:
        name = (opened.format or "bin").lower()
    return _SUFFIXES.get(name, name)
