"""The journal of a run: a line with the config, then one JSON line for each finished row.

It is only ever appended to, so a run that is killed loses at most the line it was writing.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from scalecap.data.sources import plain

SYNC_SECONDS = 5.0
"""A crash of the machine, not of the run, may lose this much."""


class JournalError(Exception):
    """The folder belongs to another run; the message says what differs."""


class Entry(NamedTuple):
    """Where a row's last record is, whether it succeeded, and the digest of its input columns."""

    offset: int
    done: bool
    digest: str


class Journal:
    """Finished rows in `folder/journal.jsonl`, by index; a later record of a row replaces an earlier one.

    A record is {index, input, columns, flags, error}.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, force: bool = False) -> None:
        """Opens the journal, or begins it. JournalError when it is of another config, or in use.

        With `force` another config goes on in it: finished rows stay, and `changes` says what differs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "journal.jsonl"
        self.changes = ""
        """What differs from the config that the first rows were made with."""
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._entries = self._read(plain(config), force)
        except BlockingIOError as error:
            self._file.close()
            raise JournalError(
                f"another run is writing to {folder}; wait, or give another output=DIR"
            ) from error
        except JournalError:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _read(self, config: Any, force: bool) -> dict[int, Entry]:
        """What is there; a torn last line is cut off."""
        entries: dict[int, Entry] = {}
        configs: list[Any] = []
        self._file.seek(0)
        offset = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
            except ValueError:
                record = {}  # a damaged line: its row is done again
            if "config" in record:
                configs.append(record["config"])
            elif offset == 0:
                raise JournalError(f"{self.path} does not begin as a journal; give another output=DIR")
            elif "index" in record:
                digest = self._digest(record["input"])
                entries[record["index"]] = Entry(offset, record["error"] is None, digest)
            offset += len(line)
        if not entries:
            offset, configs = 0, []  # begun and nothing done: whatever comes now begins it
        self._file.truncate(offset)
        if configs:
            changes = self._differences(configs[-1], config)
            if changes and not force:
                raise JournalError(
                    f"{self.path.parent} holds a run with another config ({changes}). Give another"
                    " output=DIR (equal requests come from the cache), or keep its rows with resume=force"
                )
            self.changes = self._differences(configs[0], config)
        if not configs or configs[-1] != config:
            self._write({"config": config})
        return entries

    @staticmethod
    def _differences(before: Any, now: Any) -> str:
        old, new = dict(_leaves(before)), dict(_leaves(now))
        differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        shown = "; ".join(f"{key}: was {old.get(key)}, is {new.get(key)}" for key in differ[:5])
        return shown + (f"; and {len(differ) - 5} more" if len(differ) > 5 else "")

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a finished row."""
        record = plain(record)
        offset = self._write(record)
        self._entries[record["index"]] = Entry(offset, record["error"] is None, self._digest(record["input"]))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()

    def _write(self, record: Mapping[str, Any]) -> int:
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        return offset

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    @property
    def indices(self) -> Collection[int]:
        """The rows that have a record."""
        return self._entries.keys()

    def done(self, index: int, columns: Mapping[str, Any]) -> bool:
        """Whether this row, with these input columns, is finished without an error."""
        entry = self._entries.get(index)
        return entry is not None and entry.done and entry.digest == self._digest(plain(columns))

    def records(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The records of these rows that are there, in the order given."""
        with self.path.open("rb") as file:
            for index in indices:
                if entry := self._entries.get(index):
                    file.seek(entry.offset)
                    yield json.loads(file.readline())

    @staticmethod
    def _digest(columns: Any) -> str:
        return hashlib.sha256(json.dumps(columns, sort_keys=True).encode()).hexdigest()[:16]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Lets another run have it."""
        self._sync()
        self._file.close()


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the values that hold no further ones."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
