"""Files on this disk or wherever fsspec reads (`s3://…`, `hf://…`, `memory://…`), by name or pattern."""

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
"""Bytes that a remote file is read ahead: more would fetch pictures that are passed over."""
MAX_BRACE_FILES = 1_000_000
"""Files that one pair of braces may stand for."""
_VERSIONS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")
"""What file systems call that which changes when a file is replaced; the best first."""


@dataclass(frozen=True)
class File:
    """A file by its URL, or by its absolute path on this disk; `name` is what texts call it."""

    url: str
    name: str

    def stat(self) -> tuple[int | None, str]:
        """Its size in bytes, and a stamp that is another one when it is replaced. Raises RowError."""
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
        """Opens it for reading here and there. Raises whatever the file system raises."""
        system, path = url_to_fs(self.url)
        opened: IO[bytes] = system.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
        return opened

    def read(self, start: int, size: int) -> bytes:
        """The bytes there and no others, fewer where the file ends. Raises RowError."""
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
    """What an error says, or its kind where it says nothing."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find_files(pattern: str, suffix: str) -> list[File]:
    """The files of a name or pattern (`{000..099}`, `{a,b}`, `*`, `?`, `[…]`), in order.

    Web servers and chained URLs (`…::…`) are not searched: for them, braces alone are a pattern. A folder
    stands for the files below it with that suffix, but for names that begin with a dot. No two of them have
    the same name. Raises DataError when there are none, and when nothing installed reads the URL.
    """
    try:
        found = _with_unique_names(
            file for each in _expand_braces(pattern) for file in _matching(each, suffix)
        )
    except DataError:
        raise
    except (ImportError, ValueError) as error:
        raise DataError(f"{pattern!r} can't be read from: {error}") from error
    except Exception as error:  # file systems raise their own kinds
        raise DataError(f"{pattern!r} can't be looked up: {error_text(error)}") from error
    if not found and Path(pattern).expanduser().is_dir():
        raise DataError(f"no file below {pattern!r} ends in {suffix}")
    if not found:
        raise DataError(f"no file is named {pattern!r}; data.path=… takes names, patterns and folders")
    return found


def _with_unique_names(files: Iterable[File]) -> list[File]:
    """The files; one that is there again, or differs in its URL's query alone, as `NAME (2)`."""
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
        below = sorted(each for each in path.rglob(f"*{suffix}") if each.name[0] != ".")
        names = [str(each) for each in below if each.is_file()]
    elif glob.has_magic(name) and not path.exists():
        names = [each for each in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(each)]
    else:
        names = [str(path)]
    for each in names:
        yield File(str(Path(each).absolute()), each)


def redact_urls(text: str) -> str:
    """The text, its URLs without what lets their reader in: a user's name, password or token, a query."""
    text = re.sub(r"(?<=://)[^/@\s'\"]*@", "", text)
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def _expand_braces(pattern: str) -> Iterator[str]:
    """`{000..010}` counted, with its zeros, and `{a,b}` listed; other braces are themselves."""
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
            raise DataError(f"{{{inside}}} stands for more than {MAX_BRACE_FILES:,} files")
        padded = any(len(each) > 1 and each.startswith("0") for each in (first, last))
        width = max(len(first), len(last)) if padded else 0
        return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    return inside.split(",") if "," in inside else ()
