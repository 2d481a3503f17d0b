from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

from scalecap.scenes.kinds import GROUNDS, KINDS, PLACES
from scalecap.scenes.themes import THEMES, USUAL_COLOUR, USUAL_LEVEL, USUAL_SIZE, colours, usual_place
from scalecap.scenes.train.course import _PHASE_SEEDS, _PHASES, FIRST_SEED
from scalecap.scenes.world import render, sample, unseen_seed


def test_a_seed_is_a_scene_and_an_image():
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
            assert thing["colour"] in colours(thing["kind"])
            assert (thing["size"] is None) == (thing["count"] > 1)
            for other in thing["next_to"]:
                assert thing["kind"] in things[other]["next_to"]


def test_scenes_have_habits_and_exceptions():
    things, sizes, dyes, levels, strangers = 0, [], [], [], 0
    for scene in map(sample, range(1500)):
        assert scene.ground in THEMES[scene.theme].grounds
        for thing in scene.things:
            kind = KINDS[thing.kind]
            things += 1
            strangers += thing.kind not in THEMES[scene.theme].kinds
            levels.append(usual_place(thing.kind, thing.place) == thing.place)
            sizes += [thing.size == kind.size] if thing.size else []
            dyes += [thing.colour == kind.colour] if kind.dyed else []
    assert 0.08 < strangers / things < 0.14
    assert sum(sizes) / len(sizes) == pytest.approx(USUAL_SIZE, abs=0.03)
    assert sum(dyes) / len(dyes) == pytest.approx(USUAL_COLOUR, abs=0.04)
    assert sum(levels) / len(levels) == pytest.approx(USUAL_LEVEL, abs=0.06)  # a row may be full


def test_without_habits_all_kinds_are_equally_likely():
    seen = Counter(thing.kind for seed in range(2000) for thing in sample(seed, habits=False).things)
    assert len(seen) == len(KINDS)
    assert max(seen.values()) < 2 * min(seen.values())


def test_recoloured_pictographs_differ_only_in_colour():
    scene = next(s for s in map(sample, range(99)) if s.things[0].kind == "tractor")
    images = {}
    for colour in colours("tractor"):
        thing = replace(scene.things[0], colour=colour)
        images[colour] = np.asarray(render(replace(scene, things=(thing,))), float)
    alpha = {colour: np.abs(image - images["green"]).sum(-1) > 0 for colour, image in images.items()}
    assert not alpha["green"].any()
    for colour in set(images) - {"green"}:
        assert 0.005 < alpha[colour].mean() < 0.1  # its paint, not its wheels or the ground


def test_unseen_scenes_are_never_trained_on():
    last = FIRST_SEED + _PHASE_SEEDS * (10 * 99 + len(_PHASES))
    assert min(unseen_seed(seed, index) for seed in (0, 1, 99) for index in (0, 10**6)) > last
    assert len({unseen_seed(seed, index) for seed in range(3) for index in range(100)}) == 300
