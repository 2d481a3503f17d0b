"""`data=folder`: the images below a folder, ordered by path.

Links to files are followed, links to folders are not (they could form loops). Hidden files are skipped.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.images import image_row
from scalecap.data.sources import RowSource, escaped_name, json_safe, required_path
from scalecap.rows import Row, RowError, unreadable_row

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg"),
    *(".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
"""File extensions taken for images, in lower case."""


def open_folder(data: DataSettings) -> RowSource:
    """One row per image; its path relative to the folder is both the id and the only column.

    Raises:
        DataError: the folder does not exist or has no images.
    """
    folder = Path(required_path(data)).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file: data.path names the folder" if folder.is_file() else "does not exist"
        raise DataError(f"{data.path!r} {what}; data=folder reads the images below a folder")
    total = sum(1 for _ in _walk(folder))
    if not total:
        raise DataError(f"no image below {data.path!r}; expected files that end in {' '.join(SUFFIXES)}")
    return RowSource({data.image: "text"}, total, partial(_rows, folder, data.image))


def _rows(folder: Path, column: str) -> Iterator[Row]:
    for index, (path, error) in enumerate(_walk(folder)):
        name = path.relative_to(folder).as_posix()
        columns, id = {column: json_safe(name)}, escaped_name(name)
        if error:
            yield unreadable_row(index, columns, error, id=id)
        else:
            yield image_row(index, columns, path, id=id)


def _walk(folder: Path) -> Iterator[tuple[Path, RowError | None]]:
    """Image paths in order; an unreadable folder is yielded itself, with its error."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, RowError("unreadable_folder", f"can't read {str(folder)!r}: {error.strerror}")
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES) and not _leads_to_folder(entry):
            yield Path(entry.path), None


def _leads_to_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself or into a locked folder, which fails when it is opened
        return False
