"""`scalecap cache [DIR] [--clear]`: the size of the reply cache, or its deletion."""

import argparse
import sqlite3
from pathlib import Path

from scalecap.config.settings import CacheSettings
from scalecap.interpreter.cache import Cache, CacheError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap cache", description="Print the size of the reply cache, or delete it."
    )
    parser.add_argument(
        "dir", nargs="?", default=CacheSettings.dir, help="folder of the cache (default: %(default)s)"
    )
    parser.add_argument("--clear", action="store_true", help="delete the replies of all hosts")
    arguments = parser.parse_args()
    folder = Path(arguments.dir).expanduser()
    if not any(folder.glob("replies*.sqlite")):
        parser.exit(1, f"error: no reply cache in {folder}\n")
    try:
        cache = Cache(folder)
        if arguments.clear:
            cache.clear()
        print(cache.size())
        cache.close()
    except (CacheError, sqlite3.Error) as error:
        parser.exit(1, f"error: {error}\n")
