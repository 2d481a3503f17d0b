"""Means over rows with 95 % percentile bootstrap intervals (Efron 1979), and the names of metrics.

Every number of a row is a pair (count, of): (number, 1) for a plain number, numerator and denominator for a
ratio that is pooled over rows, such as CHAIR. The mean of pairs is Σ count / Σ of.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

RESAMPLES = 1000
"""Bootstrap resamples."""
NORMAL_FROM_ROWS = 2_000
"""Number of rows from which the normal approximation replaces the bootstrap."""

Pair = tuple[float, float]
T = TypeVar("T")


class Interval(NamedTuple):
    """A mean over `rows` rows with its 95 % interval."""

    mean: float
    low: float
    high: float
    rows: int


def measures(column: str, value: Any) -> Iterator[tuple[str, Pair]]:
    """The numbers in a row's metric column by dotted name; nulls are skipped.

    Args:
        value: a number, `{"count": …, "of": …}`, or a mapping of names to such values. A dot within a name
            (of a caption column such as `gpt-4.1`) is escaped: `capsbench.gpt-4\\.1.accuracy`.
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
    """A part of a metric's name, with its own dots escaped."""
    return part.replace("\\", "\\\\").replace(".", "\\.")


def parts(name: str) -> list[str]:
    """The parts of a metric's dotted name: the step, then caption, measure and so on."""
    return [re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:^|\.)((?:[^.\\]|\\.)*)", name)]


def label(name: str) -> str:
    """A metric's name for display, without escapes."""
    return ".".join(parts(name))


def named(wanted: str, names: Iterable[str]) -> str | None:
    """The name that equals `wanted`, with or without escapes."""
    return next((name for name in names if wanted in (name, label(name))), None)


def is_part(name: str) -> bool:
    """Whether a metric is a breakdown of another (by category, by kind of fact), which only files list."""
    return len(parts(name)) > 3


def by_step(metrics: Mapping[str, T]) -> dict[str, dict[str, dict[str, T]]]:
    """Metrics without breakdowns as tables: by step, measure and caption (empty names for none)."""
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
        """Σ d², Σ d · of, Σ of², where d = count - centre · of: the centre is a first estimate of the mean,
        which avoids the cancellation of large sums."""

    def add(self, pair: Pair) -> None:
        self._rows += 1
        if self._rows <= NORMAL_FROM_ROWS:
            self._pairs.extend(pair)
            if self._rows == NORMAL_FROM_ROWS:
                self._pack()
        else:
            self._accumulate(*pair)

    def _pack(self) -> None:
        counts, ofs = self._pairs[::2], self._pairs[1::2]
        self._centre = sum(counts) / sum(ofs) if sum(ofs) else 0.0
        for count, of in zip(counts, ofs, strict=True):
            self._accumulate(count, of)
        self._pairs = array("d")

    def _accumulate(self, count: float, of: float) -> None:
        deviation = count - self._centre * of
        one, two, three = self._squares
        self._count, self._of = self._count + count, self._of + of
        self._squares = one + deviation * deviation, two + deviation * of, three + of * of

    def interval(self) -> Interval | None:
        """The mean of all pairs so far; None when the denominator is 0."""
        if self._rows < NORMAL_FROM_ROWS:
            return _interval(np.array(self._pairs).reshape(-1, 2))
        if not self._of:
            return None
        found = self._count / self._of
        shift, (one, two, three) = found - self._centre, self._squares
        # The squared influence of each row, summed: see `_interval`.
        influence = max(0.0, one - 2 * shift * two + shift * shift * three)
        margin = 1.96 * float(np.sqrt(influence)) / abs(self._of)
        return Interval(found, found - margin, found + margin, self._rows)


def mean(pairs: Sequence[Pair] | np.ndarray) -> Interval | None:
    """The mean of the pairs; None when the denominator is 0."""
    return _interval(np.asarray(pairs, float).reshape(-1, 2))


def difference(pairs: Sequence[Pair] | np.ndarray, baseline: Sequence[Pair] | np.ndarray) -> Interval | None:
    """The mean of `pairs` minus that of `baseline`, paired row by row."""
    both = np.hstack([np.asarray(each, float).reshape(-1, 2) for each in (pairs, baseline)])
    return _interval(both)


def _interval(values: np.ndarray) -> Interval | None:
    """The mean of (rows, 2) pairs, or the difference of two means of (rows, 4) values."""
    rows = len(values)
    found = _estimate(values.sum(0, keepdims=True))[0] if rows else np.nan
    if not np.isfinite(found):
        return None
    if rows >= NORMAL_FROM_ROWS:
        # The infinitesimal jackknife: the influence of each row on the estimate.
        sums = values.sum(0)
        influence = sum(
            sign * (values[:, at] - values[:, at + 1] * sums[at] / sums[at + 1]) / sums[at + 1]
            for at, sign in ((0, 1), (2, -1))
            if at < values.shape[1]
        )
        margin = 1.96 * float(np.sqrt(np.sum(np.square(influence))))
        return Interval(float(found), float(found) - margin, float(found) + margin, rows)
    estimates = _estimate(_resample_counts(rows) @ values)
    low, high = np.nanpercentile(estimates, (2.5, 97.5))
    return Interval(float(found), float(low), float(high), rows)


@lru_cache(maxsize=2)
def _resample_counts(rows: int) -> np.ndarray:
    """How often each resample has each row (resamples, rows); the same for all metrics."""
    rng = np.random.default_rng(0)
    drawn = [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(RESAMPLES)]
    return np.array(drawn, float)


def _estimate(sums: np.ndarray) -> np.ndarray:
    """The mean, or the difference of two, of sums (resamples, 2 or 4); NaN where a denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[:, 0::2] / np.where(sums[:, 1::2] == 0, np.nan, sums[:, 1::2])
    estimates: np.ndarray = means[:, 0] if means.shape[1] == 1 else means[:, 0] - means[:, 1]
    return estimates


def area(high: Sequence[float] | np.ndarray, low: Sequence[float] | np.ndarray) -> float:
    """Area under the ROC curve: probability that a value of `high` exceeds one of `low`; ties count half
    (Mann and Whitney 1947)."""
    ordered, values = np.sort(low), np.asarray(high)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return float(np.mean(below) / 2 / len(ordered))
