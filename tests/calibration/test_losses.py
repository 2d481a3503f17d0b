"""The guarantee from several labels per image, on known distributions: the betting bound."""

import numpy as np
import pytest

from scalecap.calibration import losses
from scalecap.calibration.calibrate import promises
from scalecap.calibration.losses import (
    STAKES,
    WEIGHTS,
    betting_wealth,
    images_needed,
    loosest_threshold_by_betting,
)
from scalecap.calibration.statements import LabelledArrays
from scalecap.calibration.statistics import THRESHOLDS, Share, kept_counts, loosest_threshold, max_wrong_kept

World = tuple[list[np.ndarray], list[np.ndarray]]
IMAGES = 1_000
"""Of each world."""


def labelled(world: World, images: np.ndarray) -> LabelledArrays:
    """All statements of these images, which may be drawn more than once."""
    p_yes, true = world
    sizes = [len(p_yes[each]) for each in images]
    return LabelledArrays(
        np.concatenate([p_yes[each] for each in images]),
        np.concatenate([true[each] for each in images]),
        np.repeat(np.arange(len(images)), sizes),
    )


def rates(world: World) -> np.ndarray:
    """By threshold, how likely a kept statement is wrong: a random one of a random image."""
    each = [kept_counts(p_yes, true) for p_yes, true in zip(*world, strict=True)]
    sizes = np.array([len(p_yes) for p_yes in world[0]])[:, None]
    kept, wrong = (np.array(parts) / sizes for parts in zip(*each, strict=True))
    with np.errstate(invalid="ignore"):
        return wrong.sum(0) / kept.sum(0)


def made(rate, alike: float, sizes=(1, 6), seed: int = 5) -> World:
    """Statements that are wrong with a probability of `rate(quantile)`, quantile 0 being the surest.

    With a probability of `alike`, all statements of an image are as true and as sure as its first.
    """
    dice = np.random.default_rng(seed)
    world: World = ([], [])
    for _ in range(IMAGES):
        quantile, coin = dice.random((2, int(dice.integers(sizes[0], sizes[1] + 1))))
        if dice.random() < alike:
            quantile, coin = np.full_like(quantile, quantile[0]), np.full_like(coin, coin[0])
        world[0].append(1 / (1 + np.exp(32 * quantile - 16)))
        world[1].append(coin >= rate(quantile))
    return world


WORLDS = {
    "rising, of one piece": made(lambda q: q**2 * 0.7, 1.0),
    "an uninformative check": made(lambda q: np.full_like(q, 0.21), 0.5),
    "surest are wrong": made(lambda q: np.where(q < 0.1, 0.6, np.where(q < 0.5, 0.05, 0.45)), 0.2),
    "a step": made(lambda q: np.where(q < 0.4, 0.05, 0.8), 0.0, sizes=(3, 3)),
}


def broken(places: list[int | None], known: np.ndarray, wrong: float) -> float:
    """The share of the draws in which more of the kept statements are wrong than promised."""
    return float(np.mean([place is not None and known[place] > wrong for place in places]))


@pytest.mark.parametrize("name", WORLDS)
def test_a_promise_is_broken_in_at_most_one_draw_of_twenty(name: str):
    world, wrong, images, draws = WORLDS[name], 0.2, 100, 1_000
    known, dice = rates(world), np.random.default_rng(1)
    most = 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5  # plus three standard errors of the Monte Carlo estimate
    found, naive = [], []
    for _ in range(draws):
        labels = labelled(world, dice.integers(IMAGES, size=images))
        found.append(loosest_threshold_by_betting(betting_wealth(*labels, wrong), images, 0.95))
        tests = max_wrong_kept(len(labels.true), wrong, 0.95)
        naive.append(loosest_threshold(*kept_counts(labels.p_yes, labels.true), tests))
    assert broken(found, known, wrong) <= most
    if name == "rising, of one piece":  # labels of one image taken as independent
        assert broken(naive, known, wrong) > 2 * most
    if name == "a step":
        assert sum(place is not None for place in found) > 0.8 * draws


def test_the_wealth_is_the_mean_of_products_over_images():
    dice = np.random.default_rng(0)
    p_yes, true, image = dice.random(50), dice.random(50) < 0.8, dice.integers(12, size=50)
    wealth = betting_wealth(p_yes, true, image, 0.1)
    for place in (100, 160, 321):
        kept = p_yes >= THRESHOLDS[place]
        products = [1.0, 1.0]
        for number in np.unique(image):
            own = image == number
            loss = ((kept & ~true & own).sum() - 0.1 * (kept & own).sum()) / own.sum()
            products = [
                wealth * (1 - stake / 0.9 * loss) for wealth, stake in zip(products, STAKES, strict=True)
            ]
        assert wealth.log[place] == pytest.approx(np.log(np.dot(WEIGHTS, products)))
        assert wealth.kept[place] == pytest.approx(
            sum((kept & (image == each)).sum() / (image == each).sum() for each in np.unique(image))
        )


def test_neither_order_nor_pieces_matter(monkeypatch: pytest.MonkeyPatch):
    dice = np.random.default_rng(0)
    labels = dice.random(60), dice.random(60) < 0.8, dice.integers(20, size=60)
    mixed = dice.permutation(60)
    before = betting_wealth(*labels, 0.1)
    monkeypatch.setattr(losses, "CHUNK_SIZE", 7)
    after = betting_wealth(*(each[mixed] for each in labels), 0.1)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other)


def test_few_images_promise_nothing_however_many_labels():
    image = np.repeat(np.arange(20), 50)
    wealth = betting_wealth(np.full(1000, 0.9), np.ones(1000, bool), image, 0.05)
    assert loosest_threshold_by_betting(wealth, 20, 0.95) is None
    assert 60 <= (images_needed(wealth, 0.95) or 0) <= 400
    wealth = betting_wealth(np.full(1000, 0.9), np.zeros(1000, bool), image, 0.05)
    assert images_needed(wealth, 0.95) is None


def test_the_bound_depends_only_on_the_numbers_of_images_and_labels():
    def bounds(images: int, each: int, true: bool) -> dict[float, str]:
        image = np.repeat(np.arange(images), each)
        every = LabelledArrays(np.full(len(image), 0.9), np.full(len(image), true), image)
        drawn = LabelledArrays(np.full(images, 0.9), np.full(images, true), np.arange(images))
        return {p.wrong: p.bound for p in promises(every, drawn, (0.05, 0.1, 0.2), 0.95)}

    for true in (True, False):
        assert bounds(200, 1, true) == dict.fromkeys((0.05, 0.1, 0.2), "binomial")
        assert bounds(200, 3, true) == {0.05: "binomial", 0.1: "betting", 0.2: "betting"}
        assert bounds(50, 3, true) == dict.fromkeys((0.05, 0.1, 0.2), "binomial")


def test_more_labels_of_an_image_find_looser_thresholds():
    world, known = WORLDS["a step"], rates(WORLDS["a step"])
    dice, gained = np.random.default_rng(3), []
    for _ in range(30):
        labels = labelled(world, dice.integers(IMAGES, size=150))
        all_of_them = loosest_threshold_by_betting(betting_wealth(*labels, 0.2), 150, 0.95)
        one = slice(None, None, 3)
        alone = loosest_threshold(
            *kept_counts(labels.p_yes[one], labels.true[one]), max_wrong_kept(150, 0.2, 0.95)
        )
        gained.append((all_of_them or 0) - (alone or 0))
    assert np.mean(gained) > 0
    assert np.nanmax(known) > 0.2  # so that not every threshold keeps the promise


def test_shares_over_few_images_have_wide_intervals():
    assert Share(90, 100, 100).interval == Share(90, 100).interval
    wide, narrow = Share(90, 100, 10).interval, Share(90, 100).interval
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert wide == pytest.approx(Share(9, 10).interval)
