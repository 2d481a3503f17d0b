"""Output folders that every run replaces atomically."""

import errno
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = ".scalecap"
"""Marker file of a folder that scalecap wrote and may therefore replace."""


def is_foreign(folder: Path) -> bool:
    """Whether the path exists and was not written by scalecap."""
    return folder.exists() and not (folder / MARKER).exists()


@contextmanager
def replacing(folder: Path, *, unmarked: bool = False) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` when the block succeeds.

    Args:
        unmarked: also replaces a folder without `MARKER`.

    Raises:
        FileExistsError: `folder` exists and was not written by scalecap.
    """
    if not unmarked and is_foreign(folder):
        raise FileExistsError(errno.EEXIST, f"{folder} was not written by scalecap")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / MARKER).write_text("Each run in the folder above replaces this one.\n", encoding="utf-8")
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def remove_others(folder: Path, wanted: Collection[str]) -> None:
    """Removes the folders below `folder` that scalecap wrote, except those of these names."""
    for marker in folder.glob(f"*/{MARKER}"):
        if marker.parent.name not in wanted:
            shutil.rmtree(marker.parent)
