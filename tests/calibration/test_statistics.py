"""The guarantee itself, on labels of a known distribution."""

import numpy as np
import pytest

from scalecap.calibration.statistics import (
    THRESHOLDS,
    Share,
    kept_counts,
    labels_needed,
    loosest_threshold,
    max_wrong_kept,
)


def test_shares_have_the_exact_interval():
    # Clopper and Pearson: the upper bound for 0 of 59 is 1 - 0.025 ** (1 / 59).
    assert Share(0, 59).interval == pytest.approx((0, 1 - 0.025 ** (1 / 59)))
    assert Share(3, 3).interval[1] == 1
    assert Share(0, 0).interval == (0, 1)
    assert np.isnan(Share(0, 0).mean)


def test_thresholds_go_from_strict_to_loose():
    assert np.all(np.diff(THRESHOLDS) < 0)
    assert THRESHOLDS[-1] == 0
    assert np.min(np.abs(THRESHOLDS - 0.5)) == 0


def test_kept_and_wrong_are_counted_as_a_check_would_keep_them():
    p = np.array([0.9, 0.5, 0.5, 0.2, -1.0])
    kept, wrong = kept_counts(p, np.array([True, False, True, False, True]))
    for threshold, k, w in zip(THRESHOLDS, kept, wrong, strict=True):
        assert (k, w) == (
            (p >= threshold).sum(),
            ((p >= threshold) & [False, True, False, True, False]).sum(),
        )
    assert kept[-1] == 4  # what was not answered is never kept


def test_the_test_is_the_binomial_one():
    most = max_wrong_kept(100, 0.05, 0.95)
    assert most[58] == -1  # 0.95 ** 58 is above 0.05
    assert most[59] == 0
    assert most[92] == 0
    assert most[93] == 1  # P(at most 1 of 93) is 0.0498
    assert max_wrong_kept(10, 0.2, 0.95)[0] == -1


def test_too_few_labels_promise_nothing():
    kept, wrong = kept_counts(np.full(50, 0.9), np.ones(50, bool))
    assert loosest_threshold(kept, wrong, max_wrong_kept(50, 0.05, 0.95)) is None
    kept, wrong = kept_counts(np.full(60, 0.9), np.ones(60, bool))
    assert loosest_threshold(kept, wrong, max_wrong_kept(60, 0.05, 0.95)) == len(THRESHOLDS) - 1
    assert (
        loosest_threshold(*kept_counts(np.empty(0), np.empty(0, bool)), max_wrong_kept(0, 0.05, 0.95)) is None
    )


def test_the_sequence_ends_at_its_first_failure():
    kept = np.minimum(np.arange(len(THRESHOLDS)), 100)
    wrong = np.zeros_like(kept)
    assert loosest_threshold(kept, wrong, max_wrong_kept(100, 0.1, 0.95)) == len(THRESHOLDS) - 1
    wrong[200] = 50
    assert (
        loosest_threshold(kept, wrong, max_wrong_kept(100, 0.1, 0.95)) == 199
    )  # not the last, which passes alone
    # It begins at 29 kept (none may be wrong), since 46 (one may be) are more than a quarter of the labels.
    assert max_wrong_kept(100, 0.1, 0.95)[[28, 29, 45, 46]].tolist() == [-1, 0, 0, 1]
    wrong[28] = 5
    assert loosest_threshold(kept, wrong, max_wrong_kept(100, 0.1, 0.95)) == 199
    wrong[29] = 5
    assert loosest_threshold(kept, wrong, max_wrong_kept(100, 0.1, 0.95)) is None


def broken(rate, wrong: float, labels: int, draws: int = 4000) -> float:
    """How often the promise is broken on labels that are wrong with a probability of `rate(quantile)`."""
    dice = np.random.default_rng(labels)
    fine = (np.arange(100_000) + 0.5) / 100_000
    # P(yes) is uniform in log-odds: quantile 0 is the surest.
    edges = np.clip((16 - np.log(np.maximum(THRESHOLDS, 1e-30) / (1 - THRESHOLDS))) / 32, 0, 1)
    edges[-1] = 1
    totals = np.append(0, np.cumsum(rate(fine))) / 100_000
    share = np.interp(edges, np.append(0, fine), totals) / np.maximum(edges, 1e-9)
    most = max_wrong_kept(labels, wrong, 0.95)
    times = 0
    for _ in range(draws):
        quantile = dice.random(labels)
        kept, wrong_kept = kept_counts(
            1 / (1 + np.exp(32 * quantile - 16)), dice.random(labels) >= rate(quantile)
        )
        found = loosest_threshold(kept, wrong_kept, most)
        times += found is not None and bool(share[found] > wrong + 1e-3)
    return times / draws


RATES = {
    "rising": lambda q: q**2 / 2,
    "a step": lambda q: np.where(q < 0.4, 0.02, 0.5),
    "an uninformative check": lambda q: np.full_like(q, 0.102),
    "surest are wrong": lambda q: np.where(q < 0.1, 0.35, np.where(q < 0.5, 0.03, 0.3)),
    "up and down": lambda q: 0.1 + 0.1 * np.sin(40 * q),
}


@pytest.mark.parametrize("labels", [60, 200])
@pytest.mark.parametrize("name", RATES)
def test_a_promise_is_broken_in_at_most_one_draw_of_twenty(name: str, labels: int):
    # Three standard errors of 4,000 draws, which are 0.0034 each.
    assert broken(RATES[name], 0.1, labels) <= 0.05 + 0.0104


def test_how_many_labels_a_promise_would_take():
    dice = np.random.default_rng(0)
    p = dice.random(100)
    kept, wrong = kept_counts(p, dice.random(100) < p)
    assert loosest_threshold(kept, wrong, max_wrong_kept(100, 0.05, 0.95)) is None
    needed = labels_needed(kept, wrong, 0.05, 0.95)
    assert needed is None or needed > 100
    kept, wrong = kept_counts(np.full(40, 0.9), np.ones(40, bool))
    assert 60 <= (labels_needed(kept, wrong, 0.05, 0.95) or 0) <= 400
    kept, wrong = kept_counts(np.full(40, 0.9), np.zeros(40, bool))
    assert labels_needed(kept, wrong, 0.05, 0.95) is None
