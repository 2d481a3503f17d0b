"""SHA-256 of files, cached on disk for large ones: 145 GB of weights take minutes to read."""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

_CACHE_DIR = "~/.cache/scalecap/digests"
"""One small file per digest; next to the reply cache, and safe to delete."""
_MIN_SIZE = 1 << 20
"""Digests of smaller files, in bytes, are not cached."""
_MIN_AGE = 60.0
"""Seconds since a file's last change until its digest is cached: a second change could have the same time."""


def digest(file: Path) -> str:
    """Hex SHA-256 of a file's content.

    A cached digest is valid for the same path, size, inode, mtime and ctime in nanoseconds. Thanks to ctime a
    file that replaces another and copies its date is read again. Raises OSError if the file can't be read.
    """
    before = _fingerprint(file)
    cached = Path(_CACHE_DIR).expanduser() / hashlib.sha256(before.encode()).hexdigest()
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[0-9a-f]{64}", found := cached.read_text("ascii")):
            return found
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    status = file.stat()
    settled = max(status.st_mtime, status.st_ctime) < time.time() - _MIN_AGE
    if status.st_size >= _MIN_SIZE and settled and _fingerprint(file) == before:
        with suppress(OSError):  # disk full or home read-only: computed again next time
            cached.parent.mkdir(parents=True, exist_ok=True)
            part = cached.with_name(f"{cached.name}.{os.getpid()}.part")
            part.write_text(found, "ascii")
            os.replace(part, cached)
    return found


def _fingerprint(file: Path) -> str:
    status = file.stat()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return json.dumps([str(file.resolve()), status.st_size, status.st_ino, *times])
