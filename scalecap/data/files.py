"""Local files and those that fsspec opens (`s3://…`, `hf://…`, `memory://…`), by name or pattern."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs

from scalecap.data import DataError
from scalecap.rows import RowError

READ_AHEAD_BYTES = 2**16
"""Read-ahead of remote files; more would download images that are skipped."""
MAX_BRACE_FILES = 1_000_000
"""Most files that one pair of braces may expand to."""
_VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
"""Keys of fsspec's `info` that change when a file is replaced, the most reliable first."""


@dataclass(frozen=True)
class File:
    """A file by its URL or absolute local path; `name` is used in messages and ids."""

    url: str
    name: str

    def stat(self) -> tuple[int | None, str]:
        """The size in bytes, if known, and a stamp that changes if the file is replaced. Raises RowError."""
        try:
            system, path = url_to_fs(self.url)
            info = system.info(path)
        except Exception as error:  # file systems raise their own kinds
            raise self._error(error) from error
        if info.get("type") == "directory":
            raise RowError("unreadable_file", f"{self.name!r} is a folder")
        version = next((info[name] for name in _VERSIONS if info.get(name)), "")
        return info.get("size"), f"{self.name}: {info.get('size')} bytes of {version}"

    def open(self) -> IO[bytes]:
        """Opens the file for random access. Raises whatever the file system raises."""
        system, path = url_to_fs(self.url)
        opened: IO[bytes] = system.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
        return opened

    def read(self, start: int, size: int) -> bytes:
        """Reads one range of bytes, shorter at the end of the file. Raises RowError."""
        try:
            system, path = url_to_fs(self.url)
            content: bytes = system.cat_file(path, start=start, end=start + size)
        except Exception as error:  # file systems raise their own kinds
            raise self._error(error) from error
        return content

    def _error(self, error: Exception) -> RowError:
        if isinstance(error, FileNotFoundError):
            return RowError("missing_file", f"no such file: {self.name!r}")
        return RowError("unreadable_file", f"{self.name!r} can't be read: {error_text(error)}")


def error_text(error: Exception) -> str:
    """The message of an error, or its type where it has none."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find_files(pattern: str, suffix: str) -> list[File]:
    """The files that match a name or pattern (`{000..099}`, `{a,b}`, `*`, `?`, `[…]`), in order.

    HTTP servers and chained URLs (`…::…`) can't be listed: for them only braces are expanded. A folder means
    all files below it with that suffix, hidden ones excepted. The names returned are unique.

    Raises:
        DataError: no file matches, or no installed library reads the URL.
    """
    try:
        found = _with_unique_names(
            file for each in _expand_braces(pattern) for file in _matching(each, suffix)
        )
    except DataError:
        raise
    except (ImportError, ValueError) as error:
        raise DataError(f"can't read {pattern!r}: {error}") from error
    except Exception as error:  # file systems raise their own kinds
        raise DataError(f"can't list {pattern!r}: {error_text(error)}") from error
    if not found and Path(pattern).expanduser().is_dir():
        raise DataError(f"no {suffix} file below {pattern!r}")
    if not found:
        raise DataError(f"no file matches data.path={pattern!r}; expected a name, a pattern or a folder")
    return found


def _with_unique_names(files: Iterable[File]) -> list[File]:
    """The files; a repeated name (URLs that differ only in their query) becomes `NAME (2)`."""
    found: dict[str, File] = {}
    for file in files:
        name, number = file.name, 1
        while name in found:
            number += 1
            name = f"{file.name} ({number})"
        found[name] = replace(file, name=name)
    return list(found.values())


def _matching(name: str, suffix: str) -> Iterator[File]:
    if "://" not in name and "::" not in name:
        yield from _local(name, suffix)
        return
    system, path = url_to_fs(name)
    if "::" in name or name.startswith("http") or not glob.has_magic(name):
        yield File(name, redact_urls(name))
        return
    for each in sorted(system.glob(path)):
        url = system.unstrip_protocol(each)
        yield File(url, redact_urls(url))


def _local(name: str, suffix: str) -> Iterator[File]:
    path = Path(name).expanduser()
    if path.is_dir():
        below = sorted(each for each in path.rglob(f"*{suffix}") if each.is_file())
        # Without hidden files and those in hidden folders.
        names = [str(each) for each in below if "/." not in f"/{each.relative_to(path).as_posix()}"]
    elif glob.has_magic(name) and not path.exists():
        names = [each for each in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(each)]
    else:
        names = [str(path)]
    for each in names:
        yield File(str(Path(each).absolute()), each)


def redact_urls(text: str) -> str:
    """The text without credentials in URLs: user names, passwords, tokens and query strings."""
    text = re.sub(r"(?<=://)[^/@\s'\"]*@", "", text)
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def _expand_braces(pattern: str) -> Iterator[str]:
    """Expands `{000..010}` (zero-padded) and `{a,b}`; other braces are taken literally."""
    for found in re.finditer(r"\{([^{}]*)\}", pattern):
        head, tail = pattern[: found.start()], pattern[found.end() :]
        if options := list(_options(found[1])):
            for option in options:
                yield from (head + option + rest for rest in _expand_braces(tail))
            return
    yield pattern


def _options(inside: str) -> Any:
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = counted.groups()
        if int(last) - int(first) >= MAX_BRACE_FILES:
            raise DataError(f"{{{inside}}} expands to more than {MAX_BRACE_FILES:,} files")
        padded = any(len(each) > 1 and each.startswith("0") for each in (first, last))
        width = max(len(first), len(last)) if padded else 0
        return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    return inside.split(",") if "," in inside else ()
