"""Thumbnails of a run's images, read again from its data."""

import io
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.groups import batches
from scalecap.data.images import Fingerprint, image_name
from scalecap.data.sources import open_source
from scalecap.rows import Row, RowError
from scalecap.run.folder import Run

log = logging.getLogger(__name__)

SIZES = ((200, 448), (1_000, 320), (10_000, 192))
"""Most rows, and the longer side of a thumbnail in pixels."""
WEBP_QUALITY = 70
"""WebP quality, 0 to 100; lowered for an image that would be too large."""
PIXELS_PER_BYTE = 6
"""A thumbnail has at most size² / PIXELS_PER_BYTE bytes."""
MISSING = "it is no longer in the data"
AMBIGUOUS = "the row has no id (it is of an early version), and its image's name is not unique"
_PREFETCH = 64
"""Images read in advance."""


def thumbnails(
    run: Run,
    rows: Sequence[Mapping[str, Any]],
    source: Iterable[Row] | None = None,
    *,
    large: Collection[int] = (),
) -> list[bytes | str]:
    """A WebP thumbnail for each row, or the reason why there is none.

    Images are found by row id and shown if they were not replaced since they were captioned. Rows without an
    id (of early versions) are found by the image's name, if it is unique in the run and in the data.

    Args:
        rows: rows of `captions.jsonl`, in any order.
        source: the run's data; None opens it as the run's config says.
        large: numbers of rows whose thumbnails get the largest size.
    """
    found: list[bytes | str] = [MISSING if row.get("row_id") else AMBIGUOUS for row in rows]
    # Relative paths of the config start at the run's working directory, if it exists on this machine.
    cwd = run.cwd if source is None and run.cwd.is_dir() else Path.cwd()
    try:
        with chdir(cwd):
            matched = _match(run, rows, open_source(_data(run)) if source is None else source)
            sides = dict.fromkeys(range(len(rows)), thumbnail_size(len(rows))) | dict.fromkeys(
                large, SIZES[0][1]
            )
            for number, image in _load(run, rows, matched, sides):
                found[number] = image
    except Exception as error:  # a page without images is better than none
        known = isinstance(error, DataError | RowError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        log.warning("the page has no images: %s", reason)
        found = [each if isinstance(each, bytes) else reason for each in found]
    return found


def thumbnail_size(rows: int) -> int:
    """The longer side in pixels of the thumbnails of a run of this many rows."""
    return next((side for most, side in SIZES if rows <= most), SIZES[-1][1])


def _data(run: Run) -> DataSettings:
    """The settings of the run's data, without a limit."""
    config = run.config.get("data")
    if not config:
        raise DataError("the run's folder has no config that names its data")
    if config.get("source") == "memory":  # it is gone, but the run's data set names its files, or holds them
        dataset = str((run.folder / "dataset").resolve())
        return DataSettings(source="parquet", path=dataset, image=run.image, id="row_id", allow_outside=True)
    known = {each.name for each in fields(DataSettings)}
    return replace(DataSettings(**{name: config[name] for name in known & config.keys()}), limit=None)


def _match(run: Run, rows: Sequence[Mapping[str, Any]], source: Iterable[Row]) -> Iterator[tuple[int, Row]]:
    """Numbers of rows with the source's row of the same id, or image name where a row has no id."""
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


def _load(
    run: Run, rows: Sequence[Mapping[str, Any]], matched: Iterator[tuple[int, Row]], sides: Mapping[int, int]
) -> Iterator[tuple[int, bytes | str]]:
    ids = {row.get("row_id") for row in rows}
    known = {id: (hash, stamp) for id, hash, stamp in run.image_records() if id in ids}

    def load(number: int, row: Row) -> bytes | str:
        captioned = None
        if rows[number].get("row_id"):
            captioned = Fingerprint(*known.get(row.id, ("", "")), image_name(rows[number].get(run.image)))
        return _thumbnail(row, image_name(row.columns.get(run.image)), captioned, sides[number])

    with ThreadPoolExecutor(thread_name_prefix="thumbnails") as pool:
        for batch in batches(matched, _PREFETCH):
            numbers, found = zip(*batch, strict=True)
            yield from zip(numbers, pool.map(load, numbers, found), strict=True)


def _thumbnail(row: Row, name: str, captioned: Fingerprint | None, side: int) -> bytes | str:
    """The thumbnail of a row's image, if it matches the fingerprint of the captioned one (None: no check)."""
    try:
        hash, pixels = row.open_image()
    except Exception as error:  # the row failed for the same reason
        return str(error)
    if captioned and not captioned.matches(Fingerprint(hash, row.stamp, name)):
        return "it was replaced after it was captioned"
    if max(pixels.size) > side:
        pixels = pixels.copy()
        pixels.thumbnail((side, side), Pillow.Resampling.LANCZOS, reducing_gap=2.0)
    quality = WEBP_QUALITY
    while True:
        file = io.BytesIO()
        pixels.save(file, "WEBP", quality=quality, method=2)
        if file.tell() <= side * side // PIXELS_PER_BYTE:
            return file.getvalue()
        quality -= 20
        if quality <= 0:
            quality, pixels = WEBP_QUALITY, pixels.reduce(2)
