"""Which rows of two runs are of the same picture.

Rows are paired by their ids where both runs read the same data, and by the pixels of their pictures
where these are there once in either run. Rows of versions before ids are paired by the picture's name,
where that is there once. Rows whose picture was replaced between the runs stay apart; nothing is paired by
its place.
"""

from array import array
from typing import NamedTuple

import numpy as np

from scalecap.data.images import image_name
from scalecap.data.seen import digest
from scalecap.run.folder import Run

ALONE = -1
"""In place of a partner: there is none."""


class Keys(NamedTuple):
    """What rows are known by, each (rows,) 64-bit digests in the order of the captions; 0 for none."""

    id: np.ndarray
    hash: np.ndarray
    stamp: np.ndarray
    name: np.ndarray


def keys(run: Run) -> Keys:
    """Of the run's captions; what tells their pictures is looked up in its journal."""
    found = array("Q")
    for row in run.rows():
        found.extend((_digest(row.get("row_id")), _digest(image_name(row.get(run.image)))))
    ids, names = np.array(found, np.uint64).reshape(-1, 2).T
    journal = array("Q")
    for texts in run.image_records():
        journal.extend(map(_digest, texts))
    records = np.array(journal, np.uint64).reshape(-1, 3)[::-1]  # the last of each row counts
    known, at = np.unique(records[:, 0], return_index=True)
    place = np.searchsorted(known, ids).clip(max=max(0, len(known) - 1))
    there = (known[place] == ids) & (ids != 0) if len(known) else np.zeros(len(ids), bool)
    hashes, stamps = np.zeros((2, len(ids)), np.uint64)
    hashes[there], stamps[there] = records[at[place[there]], 1:].T
    return Keys(ids, hashes, stamps, names)


def pair(keys: Keys, baseline: Keys, *, same_data: bool) -> np.ndarray:
    """Of each row the place of its partner in the baseline, ALONE where it has none."""
    partner = np.full(len(keys.id), ALONE)
    if same_data:
        own, other = _matches(keys.id, baseline.id)
        _join(partner, own, other, _is_same(keys, baseline, own, other))
        own, other = _matches(keys.name, baseline.name)
        before = (keys.id[own] == 0) | (baseline.id[other] == 0)
        _join(partner, own, other, before)
    _join(partner, *_matches(keys.hash, baseline.hash))
    return partner


def _matches(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in both of each value that is there once in either."""
    (one, at), (two, there) = map(_single, (own, other))
    _, first, second = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    return at[first], there[second]


def _single(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, at, count = np.unique(values, return_index=True, return_counts=True)
    alone = (count == 1) & (found != 0)
    return found[alone], at[alone]


def _join(partner: np.ndarray, own: np.ndarray, other: np.ndarray, allowed: np.ndarray | bool = True) -> None:
    """Writes down the pairs of which neither has a partner yet."""
    free = allowed & (partner[own] == ALONE) & ~np.isin(other, partner)
    partner[own[free]] = other[free]


def _is_same(one: Keys, two: Keys, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether the pictures of these pairs are the same, by the surest that is known of both
    (`scalecap.data.images.Fingerprint`); of pictures without a name there is the id alone."""
    same: np.ndarray = one.name[own] == two.name[other]
    for first, second in ((one.stamp, two.stamp), (one.hash, two.hash)):
        known = (first[own] != 0) & (second[other] != 0)
        same = np.where(known, first[own] == second[other], same)
    return same


def _digest(text: object) -> int:
    return digest(text) if isinstance(text, str) and text else 0
