"""A folder of the run that each run writes anew."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = ".scalecap"
"""The file by which a folder is known as a run's own."""


def is_foreign(folder: Path) -> bool:
    """Whether something is there that no run wrote."""
    return folder.exists() and not (folder / MARK).exists()


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well.

    Raises:
        FileExistsError: what is there was written by no run.
    """
    if is_foreign(folder):
        raise FileExistsError(errno.EEXIST, f"{folder} was not written by scalecap")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / MARK).write_text("Each run in the folder above replaces this one.\n", encoding="utf-8")
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
