"""Pairs the rows of two runs that show the same image.

Runs over the same data are paired by row id, others by the hash of the pixels, if it occurs once in each run.
Rows without an id (of early versions) are paired by the image's name, if it occurs once. A row whose image
was replaced between the runs is not paired. Rows are never paired by position.
"""

from array import array
from typing import NamedTuple

import numpy as np

from scalecap.data.images import image_name
from scalecap.data.seen import digest
from scalecap.run.folder import Run

UNPAIRED = -1
"""Index of a partner that does not exist."""


class Keys(NamedTuple):
    """Keys of a run's rows, in order: arrays (rows,) of 64-bit digests, 0 where unknown."""

    id: np.ndarray
    hash: np.ndarray
    stamp: np.ndarray
    name: np.ndarray


def keys(run: Run) -> Keys:
    """The keys of a run's captions; hashes and stamps of images are read from its journal."""
    found = array("Q")
    for row in run.rows():
        found.extend((_digest(row.get("row_id")), _digest(image_name(row.get(run.image)))))
    ids, names = np.array(found, np.uint64).reshape(-1, 2).T
    journal = array("Q")
    for texts in run.image_records():
        journal.extend(map(_digest, texts))
    records = np.array(journal, np.uint64).reshape(-1, 3)[::-1]  # the last record of a row is valid
    known, at = np.unique(records[:, 0], return_index=True)
    place = np.searchsorted(known, ids).clip(max=max(0, len(known) - 1))
    there = (known[place] == ids) & (ids != 0) if len(known) else np.zeros(len(ids), bool)
    hashes, stamps = np.zeros((2, len(ids)), np.uint64)
    hashes[there], stamps[there] = records[at[place[there]], 1:].T
    return Keys(ids, hashes, stamps, names)


def pair(keys: Keys, baseline: Keys, *, same_data: bool) -> np.ndarray:
    """The index of each row's partner in the baseline, or UNPAIRED."""
    partner = np.full(len(keys.id), UNPAIRED)
    if same_data:
        own, other = _matches(keys.id, baseline.id)
        _join(partner, own, other, _is_same(keys, baseline, own, other))
        own, other = _matches(keys.name, baseline.name)
        before = (keys.id[own] == 0) | (baseline.id[other] == 0)
        _join(partner, own, other, before)
    _join(partner, *_matches(keys.hash, baseline.hash))
    return partner


def _matches(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices in both arrays of the values that occur exactly once in each."""
    (one, at), (two, there) = map(_single, (own, other))
    _, first, second = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    return at[first], there[second]


def _single(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, at, count = np.unique(values, return_index=True, return_counts=True)
    unique = (count == 1) & (found != 0)
    return found[unique], at[unique]


def _join(partner: np.ndarray, own: np.ndarray, other: np.ndarray, allowed: np.ndarray | bool = True) -> None:
    """Adds the allowed pairs of rows that are not paired yet."""
    free = allowed & (partner[own] == UNPAIRED) & ~np.isin(other, partner)
    partner[own[free]] = other[free]


def _is_same(one: Keys, two: Keys, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether the images of these pairs are the same, by the most reliable field known of both
    (`scalecap.data.images.Fingerprint`); images without a name are identified by the row's id."""
    same: np.ndarray = one.name[own] == two.name[other]
    for first, second in ((one.stamp, two.stamp), (one.hash, two.hash)):
        known = (first[own] != 0) & (second[other] != 0)
        same = np.where(known, first[own] == second[other], same)
    return same


def _digest(text: object) -> int:
    return digest(text) if isinstance(text, str) and text else 0
