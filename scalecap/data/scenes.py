"""`data=scenes`: images of the embedded world with their ground truth."""

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
    """The packaged sample, or `data.count` generated scenes that are not in the training data.

    Columns are `image` (its name) and `truth`. A generated scene is rendered when its image is opened.
    `data.seed` without `data.count` generates as many scenes as the sample has.
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
    from scalecap.scenes.world import sample, unseen_seed

    for index in range(count):
        scene = sample(unseen_seed(seed, index))
        columns = {"image": f"scene-{scene.seed}.png", "truth": scene.truth()}
        stamp = f"scene {scene.seed}"
        yield Row(index, columns, partial(_rendered, scene), stamp=stamp, read_image=partial(_encoded, scene))


def _rendered(scene: "Scene") -> Image:
    from scalecap.scenes.world import render

    return open_image(render(scene))


def _encoded(scene: "Scene") -> bytes:
    from scalecap.scenes.world import render

    return read_image(render(scene))
