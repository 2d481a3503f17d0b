"""`data=scenes`: images of the embedded world with their ground truth."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from scalecap.config.settings import DataSettings
from scalecap.data.images import image_row
from scalecap.data.jsonl import open_jsonl
from scalecap.data.sources import RowSource
from scalecap.rows import Row
from scalecap.scenes.world import SAMPLE, render, sample, unseen_seed


def open_scenes(data: DataSettings) -> RowSource:
    """The packaged sample, or `data.count` generated scenes that are not in the training data.

    Columns are `image` (its name) and `truth`. A generated scene is rendered when its image is opened.
    `data.seed` without `data.count` generates as many scenes as the sample has.
    """
    count = data.count
    if count is None:
        file = str(SAMPLE / "truth.jsonl")
        packaged = open_jsonl(replace(data, path=file, image="image", relative_to="file"))
        if not data.seed:
            return packaged
        count = packaged.total or 0
    return RowSource({"image": "text", "truth": "any"}, count, partial(_rows, data.seed, count))


def _rows(seed: int, count: int) -> Iterator[Row]:
    for index in range(count):
        scene = sample(unseen_seed(seed, index))
        columns = {"image": f"scene-{scene.seed}.png", "truth": scene.truth()}
        yield image_row(index, columns, partial(render, scene), stamp=f"scene {scene.seed}")
