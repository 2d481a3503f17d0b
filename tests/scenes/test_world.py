import json

import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

from scalecap.scenes.kinds import GROUNDS, KINDS, PLACES
from scalecap.scenes.train import FIRST_SEED
from scalecap.scenes.world import SAMPLE, render, sample, unseen


def test_a_seed_is_a_scene_and_a_picture():
    assert sample(5) == sample(5)
    assert sample(5) != sample(6)
    assert np.array_equal(np.asarray(render(sample(5))), np.asarray(render(sample(5))))


def test_truth_is_consistent():
    for seed in range(300):
        truth = sample(seed).truth()
        things = {thing["kind"]: thing for thing in truth["things"]}
        assert 2 <= len(truth["things"]) == len(things) <= 5
        assert truth["ground"] in GROUNDS
        assert len({thing["place"] for thing in truth["things"]}) == len(things)
        for thing in truth["things"]:
            assert thing["place"] in PLACES
            assert thing["colour"] == KINDS[thing["kind"]].colour
            assert (thing["size"] is None) == (thing["count"] > 1)
            for other in thing["next_to"]:
                assert thing["kind"] in things[other]["next_to"]


def test_unseen_scenes_are_never_trained_on():
    assert min(unseen(seed, index) for seed in (0, 1, 99) for index in (0, 10**6)) > 10**3 * FIRST_SEED
    assert len({unseen(seed, index) for seed in range(3) for index in range(100)}) == 300


def test_the_sample_is_what_the_generator_draws():
    lines = [json.loads(line) for line in (SAMPLE / "truth.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"{number:02}.jpg" for number in range(24)]
    scenes = [scene for scene in map(sample, range(60)) if len(scene.things) >= 3][:24]
    for line, scene in zip(lines, scenes, strict=True):
        assert line["truth"] == scene.truth()
        with Pillow.open(SAMPLE / line["image"]) as file:
            apart = np.abs(np.asarray(file, float) - np.asarray(render(scene), float)).mean()
        assert apart < 6, line["image"]  # JPEG's own loss, of 255
