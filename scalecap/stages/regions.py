"""Parts of a row's image: what `crop` and `tiles` write and other steps show to a model.

A region's pixels are in memory while its row is worked on; the output has its box.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from scalecap.engines.base import Image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the row's image; right and bottom are the first outside."""


class Region(NamedTuple):
    """A part of the row's image, as an image of its own."""

    box: Box
    whole: tuple[int, int]
    """Width and height of the row's image in pixels."""
    image: Image


def cut(image: Image, box: Box) -> Region:
    """The region of the image at a box inside of it."""
    return Region(box, image.pixels.size, Image.of(image.pixels.crop(box)))


def records(regions: Sequence[Region | None]) -> list[dict[str, Any] | None]:
    """What the output has of a column of regions: {box, of}, `of` being `Region.whole`."""
    return [{"box": list(region.box), "of": list(region.whole)} if region else None for region in regions]
