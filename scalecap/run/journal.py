"""The journal of a run: a line with the config, then one JSON line per finished row.

It is append-only, so a killed run loses at most the line that it was writing.
"""

import errno
import hashlib
import json
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from scalecap.config.effects import config_differences
from scalecap.data.shard import WHOLE, Shard, parse_shard
from scalecap.data.sources import json_safe
from scalecap.locks import lock
from scalecap.rows import Record, Row
from scalecap.threads import DaemonPool

JOURNAL = "journal.jsonl"
SYNC_SECONDS = 5.0
"""Interval between two fsyncs: what a crash of the machine (not of the process) may lose."""

State = Literal["new", "failed", "changed", "done"]


class JournalError(Exception):
    """The folder belongs to another run or can't be written; the message says what to do."""


class Journal:
    """Finished rows in `folder/journal.jsonl`, by index; a later record of a row replaces an earlier one.

    A record is {index, id, stamp, image, input, columns, flags, error, usage}: `stamp` and `image` (the hash
    of the pixels) identify the row's image. An edited row also has `edits`, and the last row of a part has
    `part`, [index of the first row, number of rows]. Early versions wrote neither `id` nor `image`.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any] | None, *, force: bool = False, cwd: str = ""
    ) -> None:
        """Opens or creates the journal.

        Args:
            config: that of the run; None opens the journal read-only.
            force: accept another config: finished rows are kept, and `changes` says what differs.
            cwd: the folder that relative paths of the config refer to; empty is the working folder.

        Raises:
            JournalError: it has another config, is in use, or (read-only) does not exist.
        """
        self.path = folder / JOURNAL
        self.cwd = cwd or os.getcwd()
        self.changes = ""
        """What differs from the config of the first rows; empty when nothing does."""
        self.complete: int | None = None
        """Rows that the data had when a run last finished; None if none has."""
        self.ended = False
        """Whether no row was added since then."""
        self.entries = Entries()
        self._parts: dict[int, tuple[bytes, int]] = {}
        """The parts whose last row (of this shard) is finished, by the index of their first row: the digest
        of their stamp, and the number of their rows."""
        self._edited: set[int] = set()
        """Indices of edited rows, which are redone once their edits are taken back."""
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
                if config is None and not self._configs:
                    raise JournalError(f"{folder} holds no run: {self.path.name} is empty")
                if config is not None:
                    self._begin(json_safe(config), force)
            except BlockingIOError as error:
                raise JournalError(
                    f"another run is writing to {folder}; wait, or give another output=DIR"
                ) from error
            except OSError as error:
                raise JournalError(
                    f"can't read {self.path}: {error.strerror}; the same command resumes once it can be read"
                ) from error
            stack.pop_all()
        self._synced = time.monotonic()
        self._syncing: Future[None] | None = None
        self._thread: DaemonPool | None = None

    def _read(self) -> int:
        """Reads the journal; returns the end offset of the last complete line."""
        self._configs: list[Any] = []
        offset = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None  # a damaged line: its row is redone
                if isinstance(record, dict):
                    self._replay(record, offset)
                if not self._configs:
                    raise JournalError(f"{self.path} is not a journal; give another output=DIR")
                offset += len(line)
        return offset

    def _replay(self, record: dict[str, Any], offset: int) -> None:
        if "config" in record:
            if not self._configs:
                self.entries = Entries(_shards(record["config"]))
            self._configs.append(record["config"])
            self.cwd = str(record.get("cwd", self.cwd))
        elif isinstance(record.get("complete"), int):
            self.complete, self.ended = record["complete"], True
        elif _is_row(record):
            self._index(record, offset)

    def _index(self, record: Mapping[str, Any], offset: int) -> None:
        identity = _identity(record.get("id"), record["input"], record.get("edits"))
        entry = Entry(offset, record["error"] is None, identity, _stamp_digest(record.get("stamp")))
        self.entries.put(record["index"], entry)
        (self._edited.add if record.get("edits") else self._edited.discard)(record["index"])
        self.ended = False
        match record.get("part"):
            case [int(first), int(rows)] if first <= record["index"] < first + rows:
                self._parts[first] = entry.stamp, rows

    def _begin(self, config: Any, force: bool) -> None:
        """Truncates a torn line, and compares the config with that of the journal."""
        if not len(self.entries):
            # No row is finished: the journal starts again with this config.
            self._configs, self._end, self.entries = [], 0, Entries(_shards(config))
        changes = self.check_config(config, force)
        if self._configs:
            self.changes = config_differences(self._configs[0], config)
        self._file.truncate(self._end)
        if not self._configs or changes:
            self._write({"config": config, "cwd": self.cwd})

    def check_config(self, config: Any, force: bool) -> str:
        """What differs from the config of its rows, which `force` allows. Raises JournalError otherwise."""
        changes = config_differences(self._configs[-1], config) if len(self.entries) else ""
        if changes and not force:
            raise JournalError(
                f"{self.path.parent} holds a run with another config ({changes}). Give another output=DIR, or"
                " hydra.sweep.dir=DIR in a sweep (equal requests come from the cache), or keep its rows with"
                " resume=force"
            )
        return changes

    @property
    def config(self) -> dict[str, Any]:
        """The config of the last run in it."""
        found: dict[str, Any] = self._configs[-1]
        return found

    @property
    def mixed(self) -> bool:
        """Whether its rows were made with more than one config."""
        return len(self._configs) > 1

    def append(self, record: Record) -> None:
        """Adds a finished row. Raises JournalError when it can't be written; earlier rows stay intact."""
        safe = json_safe(record, -1)  # so that `state` cuts columns at the same depth
        self._index(safe, self._write(safe))
        if self._syncing and self._syncing.done():
            self._await_sync()
        if self._syncing is None and time.monotonic() - self._synced > SYNC_SECONDS:
            # In a thread: fsync may take seconds on a slow disk. The next call raises its error.
            self._thread = self._thread or DaemonPool(1, "journal")
            self._syncing = self._thread.submit(os.fsync, self._file.fileno())

    def finish(self, rows: int) -> None:
        """Notes that all `rows` rows of the data were read and are finished."""
        if self.complete != rows or not self.ended:
            self._write({"complete": rows})
            self.complete, self.ended = rows, True

    def _write(self, record: Mapping[str, Any]) -> int:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        offset = self._end
        with self._write_errors():
            try:
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):  # the disk may be gone; a torn line is skipped on reading
                    self._file.truncate(offset)
                raise
        self._end += len(line)
        return offset

    def _await_sync(self) -> None:
        syncing, self._syncing = self._syncing, None
        with self._write_errors():
            if syncing:
                syncing.result()
        self._synced = time.monotonic()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"can't write to {self.path}: {error.strerror}. The {len(self.entries)} rows in it are kept;"
                " free some space and run the same command with the same output= to resume"
            ) from error

    def state(self, row: Row) -> State:
        """The state of this row; `changed` is a finished one whose input or image has changed since."""
        entry = self.entries.get(row.index)
        if entry is None:
            return "new"
        if not entry.done:
            return "failed"
        stamp = _stamp_digest(row.stamp)
        same_image = _NO_STAMP in (stamp, entry.stamp) or stamp == entry.stamp
        columns, edits = json_safe(row.columns), dict(row.edits)
        same_input = entry.digest in (_identity(row.id, columns, edits), _identity(None, columns, edits))
        return "done" if same_image and same_input else "changed"

    def finished(self, stamp: str, first: int, rows: int | None = None, *, shard: Shard = WHOLE) -> int:
        """The number of rows of a part if all of them (in this shard) are finished with this stamp, and none
        was edited; else 0.

        Args:
            first: index of its first row.
            rows: number of its rows; None takes the number that its last record has.
        """
        digest = _digest(stamp)
        if rows is None:
            recorded, rows = self._parts.get(first, (digest, 0))
            if recorded != digest:  # of the part before it was replaced
                return 0
        for index in shard.select(range(first, first + rows)):
            entry = self.entries.get(index)
            if entry is None or not entry.done or entry.stamp != digest or index in self._edited:
                return 0
        return rows

    def records(self, indices: Iterable[int]) -> Iterator[Record]:
        """The records of these rows in the order given; rows without one are skipped."""
        with self.path.open("rb") as file:
            for index in indices:
                if entry := self.entries.get(index):
                    file.seek(entry.offset)
                    yield json.loads(file.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Syncs, and releases the lock."""
        try:
            if kind is None and self._file.writable():
                self._await_sync()
                with self._write_errors():
                    os.fsync(self._file.fileno())
            elif self._syncing:
                wait([self._syncing])  # the file must stay open until then
        finally:
            self._file.close()
            if self._thread:
                self._thread.shutdown()


class Entry(NamedTuple):
    """A row's last record: its offset in bytes, whether it succeeded, digests of its input and its stamp."""

    offset: int
    done: bool
    digest: bytes
    stamp: bytes


_NO_STAMP = bytes(8)
"""Digest of a missing stamp: such an image counts as unchanged."""
_PACKED = struct.Struct("<q?8s8s")
_PAGE = 4096
"""Entries in a page."""


class Entries:
    """An index of the last record of each row, at 25 bytes a row: a run may have many millions.

    The rows of shard i of n have the indices i, i+n, i+2n, …, so each remainder has its own pages.
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
        remainders = sorted({remainder for remainder, _ in self._pages})
        for page in sorted({page for _, page in self._pages}):
            places = range(page * _PAGE, (page + 1) * _PAGE)
            yield from filter(self.get, (place * self._of + each for place in places for each in remainders))

    def _place(self, index: int) -> tuple[tuple[int, int], int]:
        """The page of an index, and the offset in it, in bytes."""
        place, remainder = divmod(index, self._of)
        return (remainder, place // _PAGE), place % _PAGE * _PACKED.size

    def get(self, index: int) -> Entry | None:
        name, at = self._place(index)
        page = self._pages.get(name)
        if page is None:
            return None
        entry = Entry(*_PACKED.unpack_from(page, at))
        return entry if entry.offset else None  # offset 0 is the config line

    def put(self, index: int, entry: Entry) -> None:
        before = self.get(index)
        self._count += before is None
        self.done += entry.done - (before is not None and before.done)
        name, at = self._place(index)
        _PACKED.pack_into(self._pages.setdefault(name, bytearray(_PAGE * _PACKED.size)), at, *entry)


def _shards(config: Any) -> int:
    """Number of shards that the data of this config is split into."""
    match config:
        case {"data": {"shard": str(text)}}:
            return parse_shard(text).of
    return 1


def _identity(id: str | None, columns: Any, edits: Any) -> bytes:
    """Digest of a row's id (where its record has one), its input, and its edits if it has any."""
    parts = [*([] if id is None else [id]), columns, *([edits] if edits else [])]
    return _digest(parts if len(parts) > 1 else columns)


def _stamp_digest(stamp: str | None) -> bytes:
    return _digest(stamp) if stamp else _NO_STAMP


def _digest(value: Any) -> bytes:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).digest()


def _is_row(record: Mapping[str, Any]) -> bool:
    """Whether a line has the fields of a row's record; a damaged line may hold anything."""
    index = record.get("index")
    whole = all(isinstance(record.get(name), dict) for name in ("input", "columns", "flags"))
    return whole and isinstance(index, int) and 0 <= index < 2**60 and "error" in record
