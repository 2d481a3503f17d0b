"""`data=scenes`: pictures of the embedded world with their truth."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from scalecap.config.settings import DataSettings
from scalecap.data.images import open_image, read_image
from scalecap.data.sources import RowSource
from scalecap.engines.base import Image
from scalecap.rows import Row

if TYPE_CHECKING:
    from scalecap.scenes.world import Scene


def open_scenes(data: DataSettings) -> RowSource:
    """The packaged sample, or `data.count` generated scenes that were never trained on.

    Columns: `image` (the picture's name) and `truth`. A generated picture is drawn when it is
    opened. A `data.seed` without a count generates as many as the sample has.
    """
    from scalecap.data.jsonl import open_jsonl
    from scalecap.scenes.world import SAMPLE

    count = data.count
    if count is None:
        file = str(SAMPLE / "truth.jsonl")
        sample = open_jsonl(replace(data, path=file, image="image", relative_to="file"))
        if not data.seed:
            return sample
        count = sample.total or 0
    return RowSource({"image": "text", "truth": "any"}, count, partial(_rows, data.seed, count))


def _rows(seed: int, count: int) -> Iterator[Row]:
    from scalecap.scenes.world import sample, unseen

    for index in range(count):
        scene = sample(unseen(seed, index))
        columns = {"image": f"scene-{scene.seed}.png", "truth": scene.truth()}
        stamp = f"scene {scene.seed}"
        yield Row(index, columns, partial(_drawn, scene), stamp=stamp, read_image=partial(_png, scene))


def _drawn(scene: "Scene") -> Image:
    from scalecap.scenes.world import render

    return open_image(render(scene))


def _png(scene: "Scene") -> bytes:
    from scalecap.scenes.world import render

    return read_image(render(scene))
