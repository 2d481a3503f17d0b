"""The journal of a run: a line with the config, then one JSON line for each finished row.

It is only ever appended to, so a run that is killed loses at most the line it was writing.
"""

import errno
import hashlib
import heapq
import json
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from scalecap.config.effects import determining
from scalecap.data.shard import WHOLE, Shard, parse_shard
from scalecap.data.sources import json_safe
from scalecap.locks import lock
from scalecap.rows import Row
from scalecap.threads import DaemonPool

JOURNAL = "journal.jsonl"
SYNC_SECONDS = 5.0
"""A crash of the machine, not of the run, may lose this much, and what came while the disk was written to."""

State = Literal["new", "failed", "changed", "done"]


class JournalError(Exception):
    """The folder belongs to another run or can't be written; the message says the mend."""


class Journal:
    """Finished rows in `folder/journal.jsonl`, by index; a later record of a row replaces an earlier one.

    A record is {index, id, stamp, image, input, columns, flags, error}: `id` is the row's, `stamp` and
    `image` (the hash of the pixels that were looked at) tell its picture; of an edited row also `edits`, and
    of a part's last row `part`, [index of its first, rows]. Earlier versions wrote no `id` and `image`.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any] | None, *, force: bool = False, cwd: str = ""
    ) -> None:
        """Opens the journal, or begins it. JournalError when it is of another config, or in use.

        With `force` another config goes on in it: finished rows stay, and `changes` says what differs.
        Without a config it is only read, and JournalError when it is not there. `cwd` is where relative paths
        of the config start, if not at the working folder.
        """
        self.path = folder / JOURNAL
        self.cwd = cwd or os.getcwd()
        """Where relative paths of the config start."""
        self.changes = ""
        """What differs from the config that the first rows were made with."""
        self.complete: int | None = None
        """Rows that the data had when a run last came to its end."""
        self.ended = False
        """Whether no row was done since then."""
        self.entries = Entries()
        self._parts: dict[int, int] = {}
        """Rows of each part whose last row (of this shard) ended, by the index of its first."""
        try:
            if config is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._file: FileIO = self.path.open("ab" if config is not None else "rb", buffering=0)
        except FileNotFoundError as error:
            raise JournalError(f"{folder} holds no run: there is no {self.path.name}") from error
        except OSError as error:
            raise JournalError(
                f"can't write in {folder}: {error.strerror}; give another output=DIR"
            ) from error
        with ExitStack() as stack:
            stack.enter_context(self._file)
            try:
                lock(self._file, shared=config is None)
                self._end = self._read()
                if config is not None:
                    self._begin(json_safe(config), force)
            except BlockingIOError as error:
                raise JournalError(
                    f"another run is writing to {folder}; wait, or give another output=DIR"
                ) from error
            except OSError as error:
                raise JournalError(
                    f"can't read {self.path}: {error.strerror}; the same command goes on once it can be read"
                ) from error
            stack.pop_all()
        self._synced = time.monotonic()
        self._syncing: Future[None] | None = None
        self._thread: DaemonPool | None = None

    def _read(self) -> int:
        """Takes in what is there; where it ends, a torn last line left out."""
        self._configs: list[Any] = []
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None  # a damaged line: its row is done again
                if isinstance(record, dict):
                    self._take(record, offset)
                if not self._configs:
                    raise JournalError(f"{self.path} does not begin as a journal; give another output=DIR")
                offset += len(line)
        return offset

    def _take(self, record: dict[str, Any], offset: int) -> None:
        if "config" in record:
            if not self._configs:
                self.entries = Entries(_shards(record["config"]))
            self._configs.append(record["config"])
            self.cwd = str(record.get("cwd", self.cwd))
        elif isinstance(record.get("complete"), int):
            self.complete, self.ended = record["complete"], True
        elif _is_row(record):
            self._enter(record, offset)

    def _enter(self, record: Mapping[str, Any], offset: int) -> None:
        stamp = record.get("stamp")  # journals of before had none
        entry = Entry(
            *(
                offset,
                record["error"] is None,
                _identity(record.get("id"), record["input"], record.get("edits")),
            ),
            _digest(stamp) if stamp else _NONE,
        )
        self.entries.put(record["index"], entry)
        self.ended = False
        match record.get("part"):
            case [int(first), int(rows)] if first <= record["index"] < first + rows:
                self._parts[first] = rows

    def _begin(self, config: Any, force: bool) -> None:
        """Cuts off what is torn, and holds the config against the one that is there."""
        if not len(self.entries):
            # Begun and nothing done: whatever comes now begins it.
            self._configs, self._end, self.entries = [], 0, Entries(_shards(config))
        changes = ""
        if self._configs:
            changes = self.differences(self._configs[-1], config)
            if changes and not force:
                raise JournalError(
                    f"{self.path.parent} holds a run with another config ({changes}). Give another"
                    " output=DIR (equal requests come from the cache), or keep its rows with resume=force"
                )
            self.changes = self.differences(self._configs[0], config)
        self._file.truncate(self._end)
        if not self._configs or changes:
            self._write({"config": config, "cwd": self.cwd})

    @property
    def config(self) -> dict[str, Any]:
        """That of the last run in it."""
        found: dict[str, Any] = self._configs[-1]
        return found

    @property
    def mixed(self) -> bool:
        """Whether its rows were made with several configs."""
        return len(self._configs) > 1

    @staticmethod
    def differences(before: Any, now: Any) -> str:
        """What differs in two configs as far as it determines rows, the first of it, for reading; empty when
        nothing does."""
        old, new = dict(_leaves(determining(before))), dict(_leaves(determining(now)))
        differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        shown = "; ".join(f"{key}: was {old.get(key)}, is {new.get(key)}" for key in differ[:5])
        return shown + (f"; and {len(differ) - 5} more" if len(differ) > 5 else "")

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a finished row. Raises JournalError when it can't be written; what was there stays whole."""
        record = json_safe(record)
        offset = self._write(record)
        self._enter(record, offset)
        if self._syncing and self._syncing.done():
            self._await_sync()
        if self._syncing is None and time.monotonic() - self._synced > SYNC_SECONDS:
            # A slow disk may take seconds, in which no row would go on; the next record has its failure.
            self._thread = self._thread or DaemonPool(1, "journal")
            self._syncing = self._thread.submit(os.fsync, self._file.fileno())

    def finish(self, rows: int) -> None:
        """Notes that all `rows` of the data were seen."""
        if self.complete != rows or not self.ended:
            self._write({"complete": rows})
            self.complete, self.ended = rows, True

    def _write(self, record: Mapping[str, Any]) -> int:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        offset, self._end = self._end, self._end + len(line)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._end = offset
            with suppress(OSError):  # of a disk that is gone; a torn line is passed over when it is read
                self._file.truncate(offset)
            raise self._broken(error) from error
        return offset

    def _await_sync(self) -> None:
        syncing, self._syncing = self._syncing, None
        try:
            if syncing:
                syncing.result()
        except OSError as error:
            raise self._broken(error) from error
        self._synced = time.monotonic()

    def _sync(self) -> None:
        """All that is written is on the disk when it returns."""
        self._await_sync()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> JournalError:
        return JournalError(
            f"can't write to {self.path}: {error.strerror}. The {len(self.entries)} rows in it are kept;"
            " make room, and the same command with the same output= goes on"
        )

    def state(self, row: Row) -> State:
        """What is known of this row: a finished one whose input or picture is another now is `changed`."""
        entry = self.entries.get(row.index)
        if entry is None:
            return "new"
        if not entry.done:
            return "failed"
        stamp = _digest(row.stamp) if row.stamp else _NONE
        same_picture = _NONE in (stamp, entry.stamp) or stamp == entry.stamp
        columns = json_safe(row.columns)
        edits = dict(row.edits)
        same_row = entry.digest in (_identity(row.id, columns, edits), _identity(None, columns, edits))
        return "done" if same_picture and same_row else "changed"

    def finished(self, stamp: str, first: int, rows: int | None = None, *, shard: Shard = WHOLE) -> int:
        """How many rows the part with that stamp has, if all of them (in this shard) are done; else 0.

        `first` is the index of its first row; `rows`, when None, is what the part's last row told.
        """
        rows = rows if rows is not None else self._parts.get(first, 0)
        digest = _digest(stamp)
        for index in shard.select(range(first, first + rows)):
            entry = self.entries.get(index)
            if entry is None or not entry.done or entry.stamp != digest:
                return 0
        return rows

    def records(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The records of these rows that are there, in the order given."""
        with self.path.open("rb") as file:
            for index in indices:
                if entry := self.entries.get(index):
                    file.seek(entry.offset)
                    yield json.loads(file.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Lets another run have it."""
        try:
            if kind is None and self._file.writable():
                self._sync()
            elif self._syncing:
                wait([self._syncing])  # its file must not be closed under it
        finally:
            self._file.close()
            if self._thread:
                self._thread.shutdown()


class Entry(NamedTuple):
    """Where a row's last record is, whether it succeeded, digests of its input and of its stamp."""

    offset: int
    done: bool
    digest: bytes
    stamp: bytes


_NONE = bytes(8)
"""In place of a stamp's digest where there is none: such a picture counts as the same."""
_PACKED = struct.Struct("<q?8s8s")
_PAGE = 4096


class Entries:
    """Each row's last record by index, in 25 bytes a row: a run may have many millions.

    A shard's rows are every `of`-th, so pages are kept apart by the remainder.
    """

    def __init__(self, of: int = 1) -> None:
        self._of = of
        self._pages: dict[tuple[int, int], bytearray] = {}
        self._count = 0
        self.done = 0
        """Rows finished without an error."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """Indices in order."""
        return heapq.merge(*(self._every(remainder) for remainder in {key[0] for key in self._pages}))

    def _every(self, remainder: int) -> Iterator[int]:
        for page in sorted(page for each, page in self._pages if each == remainder):
            places = range(page * _PAGE, (page + 1) * _PAGE)
            indices = (place * self._of + remainder for place in places)
            yield from (index for index in indices if self.get(index))

    def _place(self, index: int) -> tuple[tuple[int, int], int]:
        """The page that has the index, and where in it, in bytes."""
        place, remainder = divmod(index, self._of)
        return (remainder, place // _PAGE), place % _PAGE * _PACKED.size

    def get(self, index: int) -> Entry | None:
        name, at = self._place(index)
        page = self._pages.get(name)
        if page is None:
            return None
        entry = Entry(*_PACKED.unpack_from(page, at))
        return entry if entry.offset else None  # at 0 is the config

    def put(self, index: int, entry: Entry) -> None:
        before = self.get(index)
        self._count += before is None
        self.done += entry.done - (before is not None and before.done)
        name, at = self._place(index)
        _PACKED.pack_into(self._pages.setdefault(name, bytearray(_PAGE * _PACKED.size)), at, *entry)


def _shards(config: Any) -> int:
    """How many shards the data of a run with that config is in."""
    match config:
        case {"data": {"shard": str(text)}}:
            return parse_shard(text).of
    return 1


def _identity(id: str | None, columns: Any, edits: Any) -> bytes:
    """Of a row's id, where its record has one, its input, and its edits if it has any."""
    parts = [*([] if id is None else [id]), columns, *([edits] if edits else [])]
    return _digest(parts if len(parts) > 1 else columns)


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).digest()


def _is_row(record: Mapping[str, Any]) -> bool:
    """Whether a line has what a row's record must have; a damaged one may have anything."""
    index = record.get("index")
    whole = all(isinstance(record.get(name), dict) for name in ("input", "columns", "flags"))
    return whole and isinstance(index, int) and 0 <= index < 2**60 and "error" in record


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the values that hold no further ones."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
