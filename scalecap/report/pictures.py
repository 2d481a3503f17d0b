"""Thumbnails of a run's pictures, opened anew where the run's data has them."""

import hashlib
import io
import json
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from scalecap.data import DataError, Row, RowError
from scalecap.data.sources import open_source
from scalecap.engines.base import Image
from scalecap.report.folder import Run
from scalecap.settings import DataSettings

log = logging.getLogger(__name__)

SIDES = ((200, 448), (1_000, 320), (10_000, 192))
"""Up to so many rows, the longer side of a thumbnail in pixels."""
QUALITY = 70
"""Of WebP, 0 to 100; lower for a picture that would be too large."""
BITS = 6
"""A thumbnail has at most one byte for so many pixels of the square of its longest side."""
_AHEAD = 64
"""Pictures opened ahead of those that are done."""


def thumbnails(
    run: Run, rows: Sequence[Mapping[str, Any]], data: DataSettings | None = None
) -> list[bytes | str]:
    """A WebP for each row, or the reason why there is none.

    Args:
        rows: of the run's captions, in their order; a row's picture is found by the columns that
            the data gave it.
        data: where the run's data is; None is what the run's config says.
    """
    found: list[bytes | str] = ["it is no longer in the data"] * len(rows)
    # The run's paths start at its own working folder, if that is on this machine.
    there = run.cwd if data is None and run.cwd.is_dir() else Path.cwd()
    try:
        with chdir(there):
            source = open_source(data or _data(run))
            names = [name for name in source.columns if name not in (*run.steps, "error", "flags")]
            wanted: defaultdict[bytes, deque[int]] = defaultdict(deque)
            for number, row in enumerate(rows):
                wanted[_digest(row, names)].append(number)
            for number, picture in _opened(_matched(source, names, wanted), side_of(len(rows))):
                found[number] = picture
    except Exception as error:  # a page without pictures is better than none
        known = isinstance(error, DataError | RowError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        log.warning("the pages have no pictures: %s", reason)
        found = [each if isinstance(each, bytes) else reason for each in found]
    return found


def side_of(rows: int) -> int:
    """The longer side in pixels of each of so many thumbnails."""
    return next((side for most, side in SIDES if rows <= most), SIDES[-1][1])


def _data(run: Run) -> DataSettings:
    """The run's data, all of it."""
    told = run.config.get("data")
    if not told:
        raise DataError("the run's folder does not say where its data is")
    known = {each.name for each in fields(DataSettings)}
    return replace(DataSettings(**{name: told[name] for name in known & told.keys()}), limit=None)


def _matched(
    source: Any, names: Sequence[str], wanted: Mapping[bytes, deque[int]]
) -> Iterator[tuple[int, Callable[[], Image]]]:
    """Numbers of rows with what opens their pictures, until all are found."""
    left = sum(map(len, wanted.values()))
    row: Row
    for row in source:
        numbers = wanted.get(_digest(row.columns, names))
        if numbers:
            yield numbers.popleft(), row.open_image
            left -= 1
        if not left:
            break


def _opened(
    matched: Iterator[tuple[int, Callable[[], Image]]], side: int
) -> Iterator[tuple[int, bytes | str]]:
    with ThreadPoolExecutor(thread_name_prefix="thumbnails") as pool:
        while batch := list(islice(matched, _AHEAD)):
            made = pool.map(lambda each: _thumbnail(each[1], side), batch)
            yield from zip((number for number, _ in batch), made, strict=True)


def _thumbnail(open_image: Callable[[], Image], side: int) -> bytes | str:
    try:
        pixels = open_image().pixels
    except Exception as error:  # its row has failed for the same reason
        return str(error)
    if max(pixels.size) > side:
        pixels = pixels.copy()
        pixels.thumbnail((side, side), Pillow.Resampling.LANCZOS, reducing_gap=2.0)
    quality = QUALITY
    while True:
        file = io.BytesIO()
        pixels.save(file, "WEBP", quality=quality, method=2)
        if file.tell() <= side * side // BITS:
            return file.getvalue()
        quality -= 20
        if quality <= 0:
            quality, pixels = QUALITY, pixels.reduce(2)


def _digest(row: Mapping[str, Any], names: Sequence[str]) -> bytes:
    content = json.dumps([row.get(name) for name in names], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest()
