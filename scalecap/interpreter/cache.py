"""Reply cache on disk: the same request to the same model is answered without work, also in later runs.

One SQLite file per host in write-ahead mode, which the runs on one host share. Hosts that share the folder
never open each other's files: write-ahead mode needs shared memory, and file locks of network disks are not
reliable. Each reply is stored with a checksum, so a damaged one is computed again. A reply is returned only
once it is in the file: a killed run loses the requests in flight and no others.

    scalecap cache [DIR] [--clear]

prints the size of each host's file, or deletes the replies of all hosts.
"""

import asyncio
import hashlib
import json
import logging
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from scalecap.engines.base import Chosen, Generated, Reply, Request, Scored, Token, Usage

_log = logging.getLogger(__name__)
_FORMAT = 3
"""Part of every key; to be increased when the meaning of a key or value changes."""
_BATCH = 4096
_CHECKSUM_DIGITS = 16
"""Hex digits of the checksum before each reply."""
_CLOSE_TIMEOUT = 5.0
"""Seconds to wait for the last read when the cache is closed."""
_COMMIT_INTERVAL = 0.005
"""Seconds between two commits; replies that arrive meanwhile are written in one."""


class CacheError(Exception):
    """The cache can't be opened; the message names the file and the fix."""


def key(identity: str, request: Request) -> str:
    """Hex digest of everything that determines the reply: the engine's identity and the whole request.

    All fields of the request that are not None are part of it, the image by its hash.
    """
    prompt = request.prompt
    given = {field.name: getattr(request, field.name) for field in fields(request)}
    content = {name: value for name, value in given.items() if value is not None} | {
        "prompt": [prompt.system, prompt.image.hash if prompt.image else None, prompt.text],
        "asks": type(request).__name__,
        "engine": identity,
        "format": _FORMAT,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=asdict).encode()).hexdigest()


T = TypeVar("T")


class _Write(NamedTuple):
    key: str
    reply: str
    done: asyncio.Future[None]


class Cache:
    """The replies in a folder. The disk may be slow, so one thread reads and one writes, both in batches."""

    def __init__(self, folder: Path) -> None:
        """Raises CacheError when the folder or file can't be opened."""
        # Containers have a new name each time they start, unless it is given (docker run --hostname).
        host = re.sub(r"[^\w.-]", "_", socket.gethostname())
        self._path = folder / f"replies-{host}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._reader, self._writes = self._connect(), self._connect()
            self._reader.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise CacheError(
                f"can't open the reply cache {self._path} ({error}): delete it, choose another"
                " folder with cache.dir=…, or run with cache=off"
            ) from error
        self._to_read: SimpleQueue[tuple[str, asyncio.Future[Reply | None]] | None] = SimpleQueue()
        self._to_write: SimpleQueue[_Write | None] = SimpleQueue()
        self._warned: set[str] = set()
        self._lost = 0
        self._reading = threading.Thread(target=self._read, name="cache reads", daemon=True)
        self._writing = threading.Thread(target=self._write, name="cache writes", daemon=True)
        self._reading.start()
        self._writing.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def count(self) -> int:
        """Number of replies in this host's file."""
        (count,) = self._reader.execute("SELECT count(*) FROM replies").fetchone()
        return int(count)

    def size(self) -> str:
        """The size of each host's file, one line each, this host's with its number of replies."""
        own = f"{self.count():,} replies, {_space(self._path)}, this host's"
        return "\n".join([own, *map(_space, self._others())])

    def clear(self) -> None:
        """Delete the replies of all hosts and free their space; running runs continue."""
        self._reader.execute("DELETE FROM replies")
        self._reader.execute("VACUUM")
        self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for path in self._others():
            for part in _parts(path):
                part.unlink(missing_ok=True)

    def _others(self) -> list[Path]:
        """Files of other hosts, and of versions with one file for all."""
        return sorted(path for path in self._path.parent.glob("replies*.sqlite") if path != self._path)

    async def get(self, key: str) -> Reply | None:
        """The reply stored under `key`, or None."""
        done: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self._to_read.put((key, done))
        return await done

    def _find(self, key: str) -> Reply | None:
        try:
            row = self._reader.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._warn("can't read some replies from %s, they are computed again: %s", error)
            return None
        return _decode(key, row[0]) if row else None

    async def put(self, key: str, reply: Reply) -> None:
        """Store a reply, and wait until it is in the file. A failure is logged, not raised.

        Empty replies are not stored, nor those cut off by the context length, which is not part of the key.
        """
        if isinstance(reply, Generated) and (reply.finish == "context" or not reply.text.strip()):
            return
        done = asyncio.get_running_loop().create_future()
        self._to_write.put(_Write(key, _encode(key, reply), done))
        await done

    def close(self) -> None:
        """Write the pending replies and close the file."""
        self._to_read.put(None)
        self._to_write.put(None)
        self._writing.join()
        self._reading.join(_CLOSE_TIMEOUT)
        self._writes.close()
        if self._lost:
            _log.warning("%d replies could not be written to %s", self._lost, self._path)

    def _read(self) -> None:
        last = False
        while not last:
            reads, last = _waiting(self._to_read)
            _settle([(done, self._find(key)) for key, done in reads])
        self._reader.close()

    def _write(self) -> None:
        last = False
        while not last:
            writes, last = _waiting(self._to_write)
            # A damaged page fails the whole batch: write one by one what does not belong on it.
            if writes and not self._commit(writes):
                self._lost += sum(not self._commit([each]) for each in writes)
            _settle([(each.done, None) for each in writes])
            time.sleep(_COMMIT_INTERVAL)

    def _commit(self, writes: Sequence[_Write]) -> bool:
        try:
            self._writes.execute("BEGIN IMMEDIATE")
            self._writes.executemany(
                "INSERT OR REPLACE INTO replies VALUES (?, ?)", [(each.key, each.reply) for each in writes]
            )
            self._writes.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # this thread must go on, or its callers wait for ever
                if self._writes.in_transaction:
                    self._writes.execute("ROLLBACK")
            self._warn("replies can't be written to %s, so other runs will compute them again: %s", error)
            return False
        return True

    def _warn(self, message: str, error: sqlite3.Error) -> None:
        """Log each message once, not at every reply."""
        if message not in self._warned:
            self._warned.add(message)
            _log.warning(message, self._path, error)


def _parts(path: Path) -> Iterator[Path]:
    """A SQLite file and its -wal and -shm files."""
    for suffix in ("", "-wal", "-shm"):
        yield path.with_name(path.name + suffix)


def _space(path: Path) -> str:
    space = sum(part.stat().st_size for part in _parts(path) if part.exists())
    return f"{space / 1e6:.1f} MB in {path}"


def _waiting(queue: "SimpleQueue[T | None]") -> tuple[list[T], bool]:
    """A batch from the queue, at least one item; whether it contained None, the end."""
    batch = [queue.get()]
    while len(batch) < _BATCH and not queue.empty():
        batch.append(queue.get())
    return [each for each in batch if each is not None], None in batch


def _settle(results: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    """Set the result of each future on its own event loop, one call per loop."""

    def settle(own: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
        for done, result in own:
            if not done.done():  # the waiter may have been cancelled
                done.set_result(result)

    for loop in {done.get_loop() for done, _ in results}:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, [each for each in results if each[0].get_loop() is loop])


def _encode(key: str, reply: Reply) -> str:
    text = json.dumps({"is": type(reply).__name__, **asdict(reply)})
    return _digest(key, text) + text


def _digest(key: str, text: str) -> str:
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()[:_CHECKSUM_DIGITS]


def _decode(key: str, stored: str) -> Reply | None:
    """The reply, or None if it is damaged or in another format (it is computed again)."""
    try:
        digest, text = stored[:_CHECKSUM_DIGITS], stored[_CHECKSUM_DIGITS:]
        if digest != _digest(key, text):
            return None
        values: dict[str, Any] = json.loads(text)
        kind, usage = values.pop("is"), Usage(*values.pop("usage"))
        if kind == "Generated":
            return Generated(**values, usage=usage)
        if kind == "Chosen":
            return Chosen(tuple(values["probabilities"]), values["mass"], usage)
        if kind == "Scored":
            return Scored(tuple(Token(*token) for token in values["tokens"]), usage)
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return None
