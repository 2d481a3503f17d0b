"""Crop regions out of the image."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from scalecap.stages import Image, ModelClient, Regions, stage
from scalecap.stages.regions import Box, cut

MIN_SIDE = 32
"""Minimum side of a crop in pixels, unless the image itself is smaller."""


@stage
class Crop:
    """The region of the image in each box, in order; null where there is no box.

    A box is [left, top, right, bottom], or a record with such a `box`, in units in which the image is
    `scale` wide and `scale` high (null: pixels). `margin` extends it on each side by that share of its
    width and height, up to the image's border. A null box (an item that was left out, or an unparsed
    reply) gives null. So does an invalid or empty box, flagged "unreadable_box", and a box that exceeds
    the image, flagged "outside".
    """

    role: ClassVar[None] = None

    def __init__(self, *, scale: float | None = 1000, margin: float = 0.25) -> None:
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError(f"scale: {scale} must be above 0, or null")
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin: {margin} must be 0 or more")
        self.scale, self.margin = scale, margin

    async def __call__(self, client: ModelClient, *, boxes: list[Any], image: Image) -> Regions:
        found = [self._box(client, box, image.pixels.size) for box in boxes]
        return await asyncio.to_thread(lambda: [cut(image, box) if box else None for box in found])

    def _box(self, client: ModelClient, given: Any, size: tuple[int, int]) -> Box | None:
        """The box to cut out, in pixels."""
        if isinstance(given, Mapping):
            given = given.get("box")
        if given is None:
            return None
        if not is_box(given):
            client.flag("unreadable_box")
            return None
        # In the box's own units: in pixels, rounding could put an edge beyond the border that it lies on.
        width, height = size if self.scale is None else (self.scale, self.scale)
        left, top, right, bottom = given
        if left < 0 or top < 0 or right > width or bottom > height:
            client.flag("outside")
            return None
        scales = [1.0 if self.scale is None else side / self.scale for side in size]
        left, top, right, bottom = (edge * scales[place % 2] for place, edge in enumerate(given))
        across, down = (
            widened(low, high, self.margin, most)
            for low, high, most in ((left, right, size[0]), (top, bottom, size[1]))
        )
        return across[0], down[0], across[1], down[1]


def is_box(value: Any) -> bool:
    """Whether it is [left, top, right, bottom] with an area above 0."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return False
    if any(isinstance(edge, bool) or not isinstance(edge, int | float) for edge in value):
        return False
    left, top, right, bottom = value
    return all(-math.inf < edge < math.inf for edge in value) and left < right and top < bottom


def widened(low: float, high: float, margin: float, most: int) -> tuple[int, int]:
    """Whole pixels from `low` to `high` plus margins, at least `MIN_SIDE` of them, within 0 to `most`."""
    more = margin * (high - low)
    first, last = max(math.floor(low - more), 0), min(math.ceil(high + more), most)
    if last - first < (least := min(MIN_SIDE, most)):
        first = min(max((first + last - least) // 2, 0), most - least)
        last = first + least
    return first, last
