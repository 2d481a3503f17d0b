"""Cut the image into a grid of overlapping tiles."""

import asyncio
from typing import ClassVar

from scalecap.stages import Image, ModelClient, Regions, stage
from scalecap.stages.regions import cut


@stage
class Tiles:
    """A grid of `rows` by `columns` tiles of equal size, row by row.

    Neighbours share `overlap` of a tile's width or height, so that an object cut by one is whole in the
    other. A side with fewer pixels than tiles is not cut.
    """

    role: ClassVar[None] = None

    def __init__(self, *, rows: int = 2, columns: int = 2, overlap: float = 0.2) -> None:
        for name, value in (("rows", rows), ("columns", columns)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap: {overlap} must be a share of a tile, 0 to below 1")
        self.rows, self.columns, self.overlap = rows, columns, overlap

    async def __call__(self, client: ModelClient, *, image: Image) -> Regions:
        width, height = image.pixels.size
        across = parts(width, self.columns, self.overlap)
        boxes = [
            (left, top, right, bottom)
            for top, bottom in parts(height, self.rows, self.overlap)
            for left, right in across
        ]
        return await asyncio.to_thread(lambda: [cut(image, box) for box in boxes])


def parts(length: int, count: int, overlap: float) -> list[tuple[int, int]]:
    """Starts and ends of `count` equal parts of a length, of which neighbours share `overlap` of a part."""
    if length < count:
        return [(0, length)]
    size = length / (count - (count - 1) * overlap)
    step = size * (1 - overlap)
    return [
        (round(step * place), max(round(step * place) + 1, round(step * place + size)))
        for place in range(count)
    ]
