"""Thresholds with a guarantee: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052).

With one labelled statement per image, labels are independent, so the number of wrong ones among those that a
threshold keeps is binomial, and whether the error rate is at most `wrong` has an exact test (Clopper and
Pearson 1934). Thresholds are tested in a fixed sequence from high to low, each at the full level, until one
fails; the last that passed is taken. Fixed-sequence testing needs no correction for multiple tests: an error
requires that the first threshold that violates the guarantee passes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

THRESHOLDS = np.append(1 / (1 + np.exp(np.arange(-160, 161) / 10)), 0.0)
"""Candidates, highest first: log-odds from 16 to -16 in steps of 0.1, then 0, which keeps every answer."""
START_SHARE = 0.25
"""Largest share of labels that the first threshold keeps; enough for it to tolerate a wrong one."""


@dataclass(frozen=True)
class Share:
    """A proportion with its exact 95 % interval (Clopper and Pearson 1934); NaN if `of` is 0."""

    hits: int
    of: int
    images: int | None = None
    """Number of images; None if it is `of`. Statements of one image may be fully dependent, so the effective
    sample size is the number of images, which makes the interval conservative."""

    @property
    def mean(self) -> float:
        return self.hits / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        if not self.of:
            return 0.0, 1.0
        size = self.of if self.images is None else self.images
        hits, misses = size * self.mean, size * (1 - self.mean)
        low = float(beta.ppf(0.025, hits, misses + 1)) if self.hits else 0.0
        high = float(beta.ppf(0.975, hits + 1, misses)) if self.hits < self.of else 1.0
        return low, high


def kept_counts(p_yes: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of statements kept by each threshold, and of wrong ones among them, both (thresholds,).

    Args:
        p_yes: P(yes) of each statement, (n,); below 0 if unanswered (kept by no threshold).
        true: labels, (n,).
    """
    p_all, p_wrong = np.sort(p_yes), np.sort(p_yes[~true])
    kept = len(p_all) - np.searchsorted(p_all, THRESHOLDS, "left")
    wrong = len(p_wrong) - np.searchsorted(p_wrong, THRESHOLDS, "left")
    return kept, wrong


def max_wrong_kept(labels: int, wrong: float, confidence: float) -> np.ndarray:
    """Critical values of the exact binomial test: most wrong statements among 0 to `labels` kept ones.

    The test passes if so few wrong ones have a probability of at most 1 - `confidence` at an error rate of
    `wrong`. -1 where even none does not suffice. Shape (labels + 1,).
    """
    kept = np.arange(labels + 1)
    most = binom.ppf(1 - confidence, kept, wrong)
    return np.where(binom.cdf(most, kept, wrong) <= 1 - confidence, most, most - 1).astype(int)


def loosest_threshold(kept: np.ndarray, wrong_kept: np.ndarray, most: np.ndarray) -> int | None:
    """Index in `THRESHOLDS` of the lowest one that passes the test; None if none does.

    The sequence starts at the highest threshold that keeps enough statements for the test to tolerate as many
    wrong ones as it does with `START_SHARE` of the labels. This choice depends on the numbers kept, not on
    the labels, so the guarantee is unaffected.

    Args:
        kept, wrong_kept: see `kept_counts`.
        most: see `max_wrong_kept`.
    """
    labels = len(most) - 1
    bears = most[int(START_SHARE * labels)]
    start = int(np.argmax(most >= max(bears, 0)))
    passes = (kept >= start) & (wrong_kept <= most[kept])
    tested = np.flatnonzero(kept >= start)
    return last_passed(passes, tested[0]) if most[start] >= 0 and len(tested) else None


def last_passed(passes: np.ndarray, first: int) -> int | None:
    """Index before the first failure from `first` on; None if `first` itself fails."""
    failed = np.flatnonzero(~passes[first:])
    last = first + int(failed[0]) - 1 if len(failed) else len(passes) - 1
    return last if last >= first else None


def labels_needed(kept: np.ndarray, wrong_kept: np.ndarray, wrong: float, confidence: float) -> int | None:
    """Estimated number of labels like the given ones (at least one) that a guarantee takes.

    None if no threshold has an error rate below `wrong`, or if 10,000 labels are too few.
    """
    labels = int(kept[-1])
    best: int | None = None
    for k, w in sorted(set(zip(kept.tolist(), wrong_kept.tolist(), strict=True))):
        share = (w + 0.5) / (k + 1)  # smoothed: no errors among k labels does not mean an error rate of 0
        if k and share < wrong:
            sizes = np.unique(np.geomspace(1, 10_000, 400).astype(int))
            enough = binom.cdf(np.round(share * sizes), sizes, wrong) <= 1 - confidence
            if enough.any():
                needed = int(np.ceil(sizes[np.argmax(enough)] * labels / k))
                best = needed if best is None else min(best, needed)
    return best if best is None or best <= 10_000 else None
