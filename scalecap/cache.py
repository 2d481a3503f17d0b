"""Replies kept between runs: same model, same request, same reply, no work.

One SQLite file in write-ahead mode, so that several runs on one machine can share it (SQLite does
not promise that for machines that share a network folder). Each reply is kept with a digest of
itself, so a damaged one is computed again.

    python -m scalecap.cache [DIR] [--clear]

says how large it is, or forgets all replies.
"""

import argparse
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
_DIGEST = 16
"""Hex digits before each reply that tell whether it is whole."""
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

    def size(self) -> str:
        """How many replies the file has and the space it takes, for reading."""
        (count,) = self._reader.execute("SELECT count(*) FROM replies").fetchone()
        parts = (self._path, self._path.with_name(self._path.name + "-wal"))
        space = sum(part.stat().st_size for part in parts if part.exists())
        return f"{count:,} replies, {space / 1e6:.1f} MB in {self._path}"

    def clear(self) -> None:
        """Forget all replies and give their space back; runs under way go on."""
        self._reader.execute("DELETE FROM replies")
        self._reader.execute("VACUUM")
        self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")

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
        return _decode(key, kept)

    def put(self, key: str, reply: Reply) -> None:
        """Keep a finished reply; a truncated or empty one is not kept."""
        if isinstance(reply, Generated) and (reply.finish != "stop" or not reply.text.strip()):
            return
        self._waiting[key] = _encode(key, reply)
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


def _encode(key: str, reply: Reply) -> str:
    text = json.dumps({"is": type(reply).__name__, **asdict(reply)})
    return _digest(key, text) + text


def _digest(key: str, text: str) -> str:
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()[:_DIGEST]


def _decode(key: str, kept: str) -> Reply | None:
    """The reply, or None when it is damaged or foreign (it is computed again)."""
    try:
        digest, text = kept[:_DIGEST], kept[_DIGEST:]
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


def main() -> None:
    from scalecap.settings import CacheSettings

    parser = argparse.ArgumentParser(prog="python -m scalecap.cache", description="The cache of replies.")
    parser.add_argument("dir", nargs="?", default=CacheSettings.dir, help="cache.dir (%(default)s)")
    parser.add_argument("--clear", action="store_true", help="forget all replies")
    arguments = parser.parse_args()
    try:
        cache = Cache(Path(arguments.dir).expanduser())
        if arguments.clear:
            cache.clear()
        print(cache.size())
        cache.close()
    except (CacheError, sqlite3.Error) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
