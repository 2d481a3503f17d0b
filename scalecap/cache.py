"""Replies kept between runs: same model, same request, same reply, no work.

One SQLite file in write-ahead mode, so that several runs on one machine can share it (SQLite does
not promise that for machines that share a network folder).
"""

import hashlib
import json
import logging
import sqlite3
import threading
from dataclasses import asdict, fields
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from scalecap.engines.base import Chosen, Generated, Reply, Request, Scored, Token, Usage

_log = logging.getLogger(__name__)
_FORMAT = 1
"""Part of every key: raise it when the meaning of a key or a value changes."""
_BATCH = 4096
_PAUSE = 0.25
"""Seconds between two commits; a crash loses at most what came after the last."""


class CacheError(Exception):
    """The cache can't be opened; the message names the file and the mend."""


def key(identity: str, request: Request) -> str:
    """Hex digest of all that determines the reply: the engine's identity and the whole request.

    Every field of a request counts; the image counts by its hash.
    """
    prompt = request.prompt
    content = {field.name: getattr(request, field.name) for field in fields(request)} | {
        "prompt": [prompt.system, prompt.image.hash if prompt.image else None, prompt.text],
        "asks": type(request).__name__,
        "engine": identity,
        "format": _FORMAT,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=asdict).encode()).hexdigest()


class Cache:
    """A folder's replies. `get` reads at once; `put` returns at once and a thread writes in batches."""

    def __init__(self, folder: Path) -> None:
        """Raises CacheError when the folder or file can't be opened."""
        self._path = folder / "replies.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._reader, self._writes = self._connect(), self._connect()
            self._reader.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise CacheError(
                f"the cache of replies {self._path} can't be opened ({error}): delete it, choose another"
                " folder with cache.dir=…, or run with cache=off"
            ) from error
        self._waiting: dict[str, str] = {}
        """Put but not yet committed."""
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="cache", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def get(self, key: str) -> Reply | None:
        """The reply kept under `key`, or None."""
        kept = self._waiting.get(key)
        if kept is None:
            try:
                row = self._reader.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                _log.warning("a reply could not be read from %s: %s", self._path, error)
                return None
            if row is None:
                return None
            kept = row[0]
        return _decode(kept)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a finished reply; a truncated one is not kept."""
        if isinstance(reply, Generated) and reply.finish != "stop":
            return
        self._waiting[key] = _encode(reply)
        self._queue.put(key)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._closing.set()
        self._queue.put(None)
        self._writer.join()
        self._reader.close()
        self._writes.close()

    def _write(self) -> None:
        connection, last = self._writes, False
        while not last:
            batch = [self._queue.get()]
            self._closing.wait(_PAUSE)
            while len(batch) < _BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            last = None in batch
            keys = [each for each in batch if each is not None]
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?)",
                    [(each, self._waiting[each]) for each in dict.fromkeys(keys)],
                )
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                _log.warning("%d replies could not be kept in %s: %s", len(keys), self._path, error)
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            for each in keys:
                self._waiting.pop(each, None)


def _encode(reply: Reply) -> str:
    return json.dumps({"is": type(reply).__name__, **asdict(reply)})


def _decode(text: str) -> Reply | None:
    """The reply, or None when the text is none (a damaged or foreign value is computed again)."""
    try:
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
