"""Thresholds with a guarantee from several labels an image: a test of mean losses, by betting.

Labels of one image are not independent of each other, but images are. Of an image with m labels, of which a
threshold keeps k, w of them wrong, the loss is (w - wrong * k) / m: its mean over images is above 0 just when
a kept statement of a random image is wrong with a probability above `wrong`. The test bets against that: a
stake s of the wealth (at most 1 / (1 - wrong)) on each image makes the wealth the product of 1 - s * loss,
which has a mean of at most 1 if the promise is broken, so that it reaches 1 / risk with a probability of at
most the risk (Markov's inequality; Waudby-Smith and Ramdas 2024, arXiv 2010.09686, section 4). The wealth is
the mean over two stakes, so that no order of the images matters.

Hoeffding-Bentkus, as in Learn then Test, knows the range of the losses alone and not that most are near 0: it
asks for several times as many labels.
"""

from typing import NamedTuple

import numpy as np

from scalecap.calibration.statistics import START, THRESHOLDS, last_passed

STAKES = (0.3, 0.95)
"""As shares of the highest: the lower bears more wrong ones, the higher needs fewer labels where there are
few."""
WEIGHTS = (0.25, 0.75)
HOPE = 0.4
"""The first threshold tested would pass with this part of the promised share wrong, if any would."""
CHUNK = 4_000
"""Statements held at once, times thresholds."""


class Wealth(NamedTuple):
    """By threshold (as `THRESHOLDS`), the logarithm of the wealth at the end."""

    log: np.ndarray
    hoped: np.ndarray
    """The same if just `HOPE` of the promised share of each image's kept statements were wrong."""
    spotless: np.ndarray
    """The same if none were."""
    kept: np.ndarray
    """Images, each with the part of its labelled statements that is kept."""
    growth: np.ndarray
    """Log-wealth an image at each stake, (stakes, thresholds), as if one statement more were wrong."""


def bet(p_yes: np.ndarray, true: np.ndarray, image: np.ndarray, wrong: float) -> Wealth:
    """The wealth after all images.

    Args:
        p_yes: of each statement (n,); below 0 for one that was not answered, which nothing keeps.
        true: whether it is (n,).
        image: its image (n,), any whole numbers.
    """
    order = np.argsort(image, kind="stable")
    p_yes, true, image = p_yes[order], true[order], image[order]
    firsts = np.flatnonzero(np.diff(image, prepend=image[0] - 1))
    stakes = np.array(STAKES) / (1 - wrong)
    sums = np.zeros((3, len(stakes), len(THRESHOLDS)))
    total = np.zeros(len(THRESHOLDS))
    for begin, end in _chunks(firsts, len(image)):
        kept = p_yes[begin:end, None] >= THRESHOLDS
        own = firsts[(firsts >= begin) & (firsts < end)] - begin
        sizes = np.diff(np.append(own, end - begin))[:, None]
        k = np.add.reduceat(kept, own, axis=0, dtype=float) / sizes
        w = np.add.reduceat(kept & ~true[begin:end, None], own, axis=0, dtype=float) / sizes
        total += k.sum(0)
        for at, each in enumerate((w, HOPE * wrong * k, np.zeros_like(k))):
            loss = each - wrong * k
            sums[at] += [np.log1p(-stake * loss).sum(0) for stake in stakes]
    log, hoped, spotless = (np.logaddexp.reduce(each + np.log(WEIGHTS)[:, None], axis=0) for each in sums)
    more = np.log1p(-stakes * (1 - wrong) / 2)[:, None]
    growth = (sums[0] + more) / (len(firsts) + 1)
    return Wealth(log, hoped, spotless, total, growth)


def _chunks(firsts: np.ndarray, statements: int) -> list[tuple[int, int]]:
    """Whole images with some `CHUNK` statements together."""
    cuts = [int(firsts[0])]
    for first in firsts[1:]:
        if first - cuts[-1] >= CHUNK:
            cuts.append(int(first))
    return list(zip(cuts, [*cuts[1:], statements], strict=True))


def loosest_by_losses(wealth: Wealth, images: int, confidence: float) -> int | None:
    """The place in `THRESHOLDS` of the loosest one that keeps the promise; None when none does.

    They are tested in a fixed sequence, as `loosest` does; the first by the kept statements alone.
    """
    enough = -np.log1p(-confidence)
    for would in (wealth.hoped, wealth.spotless):
        begins = np.flatnonzero((would >= enough) & (wealth.kept >= START * images))
        if len(begins):
            return last_passed(wealth.log >= enough, begins[0])
    return None


def images_needed(wealth: Wealth, confidence: float) -> int | None:
    """About how many labelled images a promise would take, were more like those that are there.

    None where no threshold has fewer wrong ones than promised, or 10,000 are too few.
    """
    enough = -np.log1p(-confidence) - np.log(WEIGHTS)[:, None]
    with np.errstate(divide="ignore"):
        needed = float(np.where(wealth.growth > 0, enough / wealth.growth, np.inf).min())
    return int(np.ceil(needed)) if needed <= 10_000 else None
