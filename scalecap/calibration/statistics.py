"""Thresholds with a guarantee: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052).

One labelled statement a picture makes the labels independent. Of the statements that a threshold keeps, the
wrong ones are then binomial, so that whether their share is at most `wrong` has an exact test (the one of
Clopper and Pearson 1934). Thresholds are tested in a fixed sequence, from strict to loose, each at the whole
risk, until one fails; the last that passed is taken. Testing many costs nothing, because a mistake needs the
first threshold that breaks the promise to pass.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

THRESHOLDS = np.append(1 / (1 + np.exp(np.arange(-160, 161) / 10)), 0.0)
"""All that are tested, strictest first: log-odds 16 to -16 in tenths, then 0, which keeps every answer."""
START = 0.25
"""Share of the labels that the first threshold tested keeps at most, so that it can bear a wrong one."""


@dataclass(frozen=True)
class Share:
    """A share with its exact 95 % interval (Clopper and Pearson 1934); nan of nothing."""

    hits: int
    of: int
    images: int | None = None
    """Of so many images; None is one each. Statements of one image may all be alike, so the interval is that
    of as many independent ones as there are images, which is too wide rather than too narrow."""

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


def counts(p_yes: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many statements each of `THRESHOLDS` keeps, and how many of these are wrong.

    Args:
        p_yes: of each statement (n,); below 0 for one that was not answered, which nothing keeps.
        true: whether it is (n,).
    """
    p_all, p_wrong = np.sort(p_yes), np.sort(p_yes[~true])
    kept = len(p_all) - np.searchsorted(p_all, THRESHOLDS, "left")
    wrong = len(p_wrong) - np.searchsorted(p_wrong, THRESHOLDS, "left")
    return kept, wrong


def most_wrong(labels: int, wrong: float, confidence: float) -> np.ndarray:
    """By number of statements kept, 0 to `labels`: the most wrong ones with which the test passes.

    It passes when so few would be seen with a probability of at most 1 - `confidence` if a share of `wrong`
    or more of all kept statements were wrong. -1 where not even none is few enough.
    """
    kept = np.arange(labels + 1)
    most = binom.ppf(1 - confidence, kept, wrong)
    return np.where(binom.cdf(most, kept, wrong) <= 1 - confidence, most, most - 1).astype(int)


def loosest(kept: np.ndarray, wrong_kept: np.ndarray, most: np.ndarray) -> int | None:
    """The place in `THRESHOLDS` of the loosest one that keeps the promise; None when none does.

    The first that is tested is chosen by the number of statements kept alone, not by their labels: the
    strictest that keeps as many as let the test bear as many wrong ones as it can with `START` of the labels
    (or none). That leaves the guarantee as it is: between two thresholds at which the share of wrong ones is
    just the promised one, labels are as likely to be wrong wherever the sequence begins.

    Args:
        kept, wrong_kept: as `counts` has them.
        most: as `most_wrong` has it.
    """
    labels = len(most) - 1
    bears = most[int(START * labels)]
    start = int(np.argmax(most >= max(bears, 0)))
    passes = (kept >= start) & (wrong_kept <= most[kept])
    tested = np.flatnonzero(kept >= start)
    return last_passed(passes, tested[0]) if most[start] >= 0 and len(tested) else None


def last_passed(passes: np.ndarray, first: int) -> int | None:
    """The last threshold that passes, from `first` on to the first that fails; None when that is `first`."""
    failed = np.flatnonzero(~passes[first:])
    last = first + int(failed[0]) - 1 if len(failed) else len(passes) - 1
    return last if last >= first else None


def labels_needed(kept: np.ndarray, wrong_kept: np.ndarray, wrong: float, confidence: float) -> int | None:
    """About how many labels a promise would take, were more of them like those that are there (n > 0).

    None when no threshold has fewer wrong ones than promised, or when 10,000 labels are too few.
    """
    labels = int(kept[-1])
    best: int | None = None
    for k, w in sorted(set(zip(kept.tolist(), wrong_kept.tolist(), strict=True))):
        share = (w + 0.5) / (k + 1)  # none wrong among k is no proof that none ever is
        if k and share < wrong:
            sizes = np.unique(np.geomspace(1, 10_000, 400).astype(int))
            enough = binom.cdf(np.round(share * sizes), sizes, wrong) <= 1 - confidence
            if enough.any():
                needed = int(np.ceil(sizes[np.argmax(enough)] * labels / k))
                best = needed if best is None else min(best, needed)
    return best if best is None or best <= 10_000 else None
