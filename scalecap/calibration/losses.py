"""Thresholds with a guarantee from several labels per image: a betting test of the mean loss.

Labels of one image are dependent, but images are independent. For an image with m labels, of which a
threshold keeps k, w of them wrong, the loss is (w - wrong * k) / m. Its mean over images is positive if and
only if a kept statement of a random image is wrong with a probability above `wrong`. The test bets against
that: with a stake s (at most 1 / (1 - wrong)) on each image, the wealth is the product of 1 - s * loss. Its
mean is at most 1 if the guarantee is violated, so that it reaches 1 / alpha with a probability of at most
alpha (Markov's inequality; Waudby-Smith and Ramdas 2024, arXiv 2010.09686, section 4). The wealth is averaged
over two constant stakes, which makes it independent of the order of the images.

The Hoeffding-Bentkus bound of Learn then Test uses only the range of the losses, not that most are near 0,
and needs several times as many labels.
"""

from typing import NamedTuple

import numpy as np

from scalecap.calibration.statistics import START_SHARE, THRESHOLDS, last_passed

STAKES = (0.3, 0.95)
"""Fractions of the maximal stake: the lower tolerates more errors, the higher needs fewer labels."""
WEIGHTS = (0.25, 0.75)
"""Weights of the stakes in the mean wealth."""
HOPED_SHARE = 0.4
"""Testing starts at a threshold that would pass at this fraction of the tolerated error rate."""
CHUNK_SIZE = 4_000
"""Statements per chunk; a chunk is an array (statements, thresholds)."""


class Wealth(NamedTuple):
    """Final log-wealth by threshold; arrays (thresholds,) in the order of `THRESHOLDS`."""

    log: np.ndarray
    hoped: np.ndarray
    """The same if the error rate of each image's kept statements were `HOPED_SHARE * wrong`."""
    flawless: np.ndarray
    """The same if no kept statement were wrong."""
    kept: np.ndarray
    """Sum over images of the share of labelled statements that is kept."""
    growth: np.ndarray
    """Mean log-wealth per image for each stake, (stakes, thresholds), with one more wrong statement."""


def betting_wealth(p_yes: np.ndarray, true: np.ndarray, image: np.ndarray, wrong: float) -> Wealth:
    """The wealth after all images.

    Args:
        p_yes: P(yes) of each statement, (n,); below 0 if unanswered (kept by no threshold).
        true: labels, (n,).
        image: integer ids of the statements' images, (n,).
        wrong: the tolerated error rate.
    """
    order = np.argsort(image, kind="stable")
    p_yes, true, image = p_yes[order], true[order], image[order]
    firsts = np.flatnonzero(np.diff(image, prepend=image[0] - 1))
    stakes = np.array(STAKES) / (1 - wrong)
    sums = np.zeros((3, len(stakes), len(THRESHOLDS)))
    total = np.zeros(len(THRESHOLDS))
    for begin, end in _image_chunks(firsts, len(image)):
        kept = p_yes[begin:end, None] >= THRESHOLDS
        own = firsts[(firsts >= begin) & (firsts < end)] - begin
        sizes = np.diff(np.append(own, end - begin))[:, None]
        k = np.add.reduceat(kept, own, axis=0, dtype=float) / sizes
        w = np.add.reduceat(kept & ~true[begin:end, None], own, axis=0, dtype=float) / sizes
        total += k.sum(0)
        for at, each in enumerate((w, HOPED_SHARE * wrong * k, np.zeros_like(k))):
            loss = each - wrong * k
            sums[at] += [np.log1p(-stake * loss).sum(0) for stake in stakes]
    log, hoped, flawless = (np.logaddexp.reduce(each + np.log(WEIGHTS)[:, None], axis=0) for each in sums)
    more = np.log1p(-stakes * (1 - wrong) / 2)[:, None]
    growth = (sums[0] + more) / (len(firsts) + 1)
    return Wealth(log, hoped, flawless, total, growth)


def _image_chunks(firsts: np.ndarray, statements: int) -> list[tuple[int, int]]:
    """Ranges of statements, of whole images with at least `CHUNK_SIZE` statements."""
    cuts = [int(firsts[0])]
    for first in firsts[1:]:
        if first - cuts[-1] >= CHUNK_SIZE:
            cuts.append(int(first))
    return list(zip(cuts, [*cuts[1:], statements], strict=True))


def loosest_threshold_by_betting(wealth: Wealth, images: int, confidence: float) -> int | None:
    """Index in `THRESHOLDS` of the lowest one that passes; None if none does.

    Thresholds are tested in a fixed sequence, as in `statistics.loosest_threshold`; the first is chosen
    without the labels.
    """
    enough = -np.log1p(-confidence)
    for assumed in (wealth.hoped, wealth.flawless):
        begins = np.flatnonzero((assumed >= enough) & (wealth.kept >= START_SHARE * images))
        if len(begins):
            return last_passed(wealth.log >= enough, begins[0])
    return None


def images_needed(wealth: Wealth, confidence: float) -> int | None:
    """Estimated number of labelled images like the given ones that a guarantee takes.

    None if no threshold has an error rate below the tolerated one, or if 10,000 images are too few.
    """
    enough = -np.log1p(-confidence) - np.log(WEIGHTS)[:, None]
    with np.errstate(divide="ignore"):
        needed = float(np.where(wealth.growth > 0, enough / wealth.growth, np.inf).min())
    return int(np.ceil(needed)) if needed <= 10_000 else None
