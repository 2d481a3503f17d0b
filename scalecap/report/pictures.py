"""Thumbnails of a run's pictures, opened anew where the run's data has them."""

import io
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.images import Fingerprint, image_name
from scalecap.data.sources import open_source
from scalecap.rows import Row, RowError
from scalecap.run.folder import Run

log = logging.getLogger(__name__)

SIDES = ((200, 448), (1_000, 320), (10_000, 192))
"""Up to so many rows, the longer side of a thumbnail in pixels."""
QUALITY = 70
"""Of WebP, 0 to 100; lower for a picture that would be too large."""
BITS = 6
"""A thumbnail has at most one byte for so many pixels of the square of its longest side."""
GONE = "it is no longer in the data"
UNKNOWN = "an earlier version made the row, and the picture's name does not tell which it is"
_AHEAD = 64
"""Pictures opened ahead of those that are done."""


def thumbnails(
    run: Run,
    rows: Sequence[Mapping[str, Any]],
    source: Iterable[Row] | None = None,
    *,
    large: Collection[int] = (),
) -> list[bytes | str]:
    """A WebP for each row, or the reason why there is none.

    A row's picture is found by the row's id, and shown if it is still the one that was captioned. Rows of
    versions before ids have theirs by its name, where no other row of the run or of the data has that.

    Args:
        rows: of the run's captions, in any order.
        source: the run's data; None opens what the run's config says.
        large: numbers of rows whose pictures are as large as those of a small run.
    """
    found: list[bytes | str] = [GONE if row.get("row_id") else UNKNOWN for row in rows]
    # The run's paths start at its own working folder, if that is on this machine.
    there = run.cwd if source is None and run.cwd.is_dir() else Path.cwd()
    try:
        with chdir(there):
            matched = _matched(run, rows, open_source(_data(run)) if source is None else source)
            sides = dict.fromkeys(range(len(rows)), side_of(len(rows))) | dict.fromkeys(large, SIDES[0][1])
            for number, picture in _opened(run, rows, matched, sides):
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


def _matched(run: Run, rows: Sequence[Mapping[str, Any]], source: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """Numbers of rows with the data's rows of the same id, or of the same name where a row has no id."""
    ids: defaultdict[str, list[int]] = defaultdict(list)
    names: defaultdict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        id, name = row.get("row_id"), image_name(row.get(run.image))
        if id or name:
            (ids[id] if id else names[name]).append(number)
    left, named, seen = len(ids), dict[str, Row](), Counter[str]()
    for each in source:
        for number in ids.get(each.id, ()):
            yield number, each
        left -= each.id in ids
        if names and (name := image_name(each.columns.get(run.image))) in names:
            named[name] = each
            seen[name] += 1
        if not left and not names:
            return
    yield from ((names[name][0], each) for name, each in named.items() if seen[name] == len(names[name]) == 1)


def _opened(
    run: Run, rows: Sequence[Mapping[str, Any]], matched: Iterator[tuple[int, Row]], sides: Mapping[int, int]
) -> Iterator[tuple[int, bytes | str]]:
    ids = {row.get("row_id") for row in rows}
    known = {id: (hash, stamp) for id, hash, stamp in run.image_records() if id in ids}

    def made(number: int, row: Row) -> bytes | str:
        captioned = None
        if rows[number].get("row_id"):
            captioned = Fingerprint(*known.get(row.id, ("", "")), image_name(rows[number].get(run.image)))
        return _thumbnail(row, image_name(row.columns.get(run.image)), captioned, sides[number])

    with ThreadPoolExecutor(thread_name_prefix="thumbnails") as pool:
        while batch := list(islice(matched, _AHEAD)):
            yield from zip(
                (number for number, _ in batch), pool.map(lambda each: made(*each), batch), strict=True
            )


def _thumbnail(row: Row, name: str, captioned: Fingerprint | None, side: int) -> bytes | str:
    """The row's picture, if it is the one that was captioned (None: there is no telling, nor a need to)."""
    try:
        hash, pixels = row.open_image()
    except Exception as error:  # its row has failed for the same reason
        return str(error)
    if captioned and not captioned.matches(Fingerprint(hash, row.stamp, name)):
        return "it was replaced after it was captioned"
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
