"""Means over rows, and how far to trust them: 95 % percentile bootstrap intervals (Efron 1979).

Every number of a row is a pair (count, of): a plain number is (number, 1), a share that is pooled over
rows, as CHAIR's are, its numerator and denominator. The mean of pairs is Σ count / Σ of.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

RESAMPLES = 1000
NORMAL_FROM_ROWS = 2_000
"""From so many rows on the interval is the normal one, which the bootstrap's nears at no such cost."""

Pair = tuple[float, float]
T = TypeVar("T")


class Interval(NamedTuple):
    """A mean with its 95 % interval, over `rows` rows."""

    mean: float
    low: float
    high: float
    rows: int


def measures(column: str, value: Any) -> Iterator[tuple[str, Pair]]:
    """The numbers in one row's metric column by dotted name, null ones left out.

    `value` is a number, `{"count": …, "of": …}`, or a mapping of names to such values. A dot within
    a name (of a caption column such as `gpt-4.1`) is escaped: `capsbench.gpt-4\\.1.accuracy`.
    """
    yield from _measures(escaped(column), value)


def _measures(name: str, value: Any) -> Iterator[tuple[str, Pair]]:
    if isinstance(value, Mapping):
        if value.keys() == {"count", "of"} and all(isinstance(each, int | float) for each in value.values()):
            yield name, (float(value["count"]), float(value["of"]))
        else:
            for part, each in value.items():
                yield from _measures(f"{name}.{escaped(str(part))}", each)
    elif isinstance(value, int | float):
        yield name, (float(value), 1.0)


def escaped(part: str) -> str:
    """A part of a metric's name, its own dots told from those between parts."""
    return part.replace("\\", "\\\\").replace(".", "\\.")


def parts(name: str) -> list[str]:
    """What a metric's dotted name consists of: the step, then caption, measure and the like."""
    return [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:^|\.)((?:[^.\\]|\\.)*)", name)]


def label(name: str) -> str:
    """A metric's name for reading, without the escapes."""
    return ".".join(parts(name))


def named(wanted: str, names: Iterable[str]) -> str | None:
    """The name that is written so, with its escapes or without."""
    return next((name for name in names if wanted in (name, label(name))), None)


def is_part(name: str) -> bool:
    """Whether a metric is a part of another (a category, a sort of fact): told in files alone."""
    return len(parts(name)) > 3


def by_step(metrics: Mapping[str, T]) -> dict[str, dict[str, dict[str, T]]]:
    """Metrics without their parts as tables: by step, by measure, by caption (empty names for none)."""
    tables: dict[str, dict[str, dict[str, T]]] = {}
    for name, value in metrics.items():
        if not is_part(name):
            step, *rest = parts(name)
            caption, measure = rest if len(rest) == 2 else ("", *rest) if rest else ("", "")
            tables.setdefault(step, {}).setdefault(measure, {})[caption] = value
    return tables


class Mean:
    """The running mean of pairs, equal to `mean` of all of them.

    Up to NORMAL_FROM_ROWS pairs are kept (16 bytes each) for the bootstrap; beyond that the normal interval
    needs only their sums, so memory does not grow.
    """

    __slots__ = ("_centre", "_count", "_of", "_pairs", "_rows", "_squares")

    def __init__(self) -> None:
        self._pairs = array("d")
        self._rows = 0
        self._count = self._of = self._centre = 0.0
        self._squares = (0.0, 0.0, 0.0)
        """Σ apart², Σ apart · of, Σ of², where apart = count - centre · of: the centre is a first estimate of
        the mean, so that nothing large is taken from something large."""

    def add(self, pair: Pair) -> None:
        self._rows += 1
        if self._rows <= NORMAL_FROM_ROWS:
            self._pairs.extend(pair)
            if self._rows == NORMAL_FROM_ROWS:
                self._pack()
        else:
            self._take(*pair)

    def _pack(self) -> None:
        counts, ofs = self._pairs[::2], self._pairs[1::2]
        self._centre = sum(counts) / sum(ofs) if sum(ofs) else 0.0
        for count, of in zip(counts, ofs, strict=True):
            self._take(count, of)
        self._pairs = array("d")

    def _take(self, count: float, of: float) -> None:
        apart = count - self._centre * of
        one, two, three = self._squares
        self._count, self._of = self._count + count, self._of + of
        self._squares = one + apart * apart, two + apart * of, three + of * of

    def interval(self) -> Interval | None:
        """None when there is nothing to divide by."""
        if self._rows < NORMAL_FROM_ROWS:
            return _interval(np.array(self._pairs).reshape(-1, 2))
        if not self._of:
            return None
        found = self._count / self._of
        shift, (one, two, three) = found - self._centre, self._squares
        # What each row moves the estimate by, squared and summed: see `_interval`.
        moved = max(0.0, one - 2 * shift * two + shift * shift * three)
        reach = 1.96 * float(np.sqrt(moved)) / abs(self._of)
        return Interval(found, found - reach, found + reach, self._rows)


def mean(pairs: Sequence[Pair]) -> Interval | None:
    """The mean of the pairs; None when there is nothing to divide by."""
    return _interval(np.asarray(pairs, float).reshape(-1, 2))


def difference(pairs: Sequence[Pair], baseline: Sequence[Pair]) -> Interval | None:
    """How much higher the mean of `pairs` is than that of `baseline`, row paired with row."""
    both = np.hstack([np.asarray(each, float).reshape(-1, 2) for each in (pairs, baseline)])
    return _interval(both)


def _interval(values: np.ndarray) -> Interval | None:
    """Of (rows, 2) pairs the mean, of (rows, 4) the difference of two means."""
    rows = len(values)
    found = _estimate(values.sum(0, keepdims=True))[0] if rows else np.nan
    if not np.isfinite(found):
        return None
    if rows >= NORMAL_FROM_ROWS:
        # The jackknife's infinitesimal form: what each row moves the estimate by.
        sums = values.sum(0)
        moved = sum(
            sign * (values[:, at] - values[:, at + 1] * sums[at] / sums[at + 1]) / sums[at + 1]
            for at, sign in ((0, 1), (2, -1))
            if at < values.shape[1]
        )
        reach = 1.96 * float(np.sqrt(np.sum(np.square(moved))))
        return Interval(float(found), float(found) - reach, float(found) + reach, rows)
    estimates = _estimate(_draws(rows) @ values)
    low, high = np.nanpercentile(estimates, (2.5, 97.5))
    return Interval(float(found), float(low), float(high), rows)


@lru_cache(maxsize=2)
def _draws(rows: int) -> np.ndarray:
    """How often each draw has each row (draws, rows): the same for all metrics of so many rows."""
    dice = np.random.default_rng(0)
    drawn = [np.bincount(dice.integers(rows, size=rows), minlength=rows) for _ in range(RESAMPLES)]
    return np.array(drawn, float)


def _estimate(sums: np.ndarray) -> np.ndarray:
    """Of sums (draws, 2 or 4) the mean or the difference of two; NaN where nothing is to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[:, 0::2] / np.where(sums[:, 1::2] == 0, np.nan, sums[:, 1::2])
    estimates: np.ndarray = means[:, 0] if means.shape[1] == 1 else means[:, 0] - means[:, 1]
    return estimates
