"""Digests of files, those of large ones kept between starts: 145 GB of weights take minutes to read."""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

_KEPT = "~/.cache/scalecap/digests"
"""One small file for each large file as it was; beside the cache of replies, and safe to delete."""
_LARGE = 1 << 20
"""Bytes from which on a digest is kept."""
_SETTLED = 60.0
"""Seconds since a file's last change before its digest is kept: another change might leave the same time."""


def digest(file: Path) -> str:
    """Hex SHA-256 of a file's content. Raises OSError when it can't be read.

    A kept one holds for the same path, size, inode and times of change to the nanosecond. The time of the
    inode's change is among them, so that a file put in another's place with its date copied is read anew.
    """
    before = _state(file)
    kept = Path(_KEPT).expanduser() / hashlib.sha256(before.encode()).hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[0-9a-f]{64}", found := kept.read_text("ascii")):
            return found
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    status = file.stat()
    settled = max(status.st_mtime, status.st_ctime) < time.time() - _SETTLED
    if status.st_size >= _LARGE and settled and _state(file) == before:
        with suppress(OSError):  # no room, or a home that is read only: it is computed again
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
            part.write_text(found, "ascii")
            os.replace(part, kept)
    return found


def _state(file: Path) -> str:
    status = file.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return json.dumps([str(file.resolve()), status.st_size, status.st_ino, *times])
