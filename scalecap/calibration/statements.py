"""Labelled statements of a run, from its report or its data."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scalecap.config.labelled import STEP
from scalecap.messages import plural
from scalecap.metrics.labels import Label, LabelError, Verdict, distinct
from scalecap.run.folder import Run, checks, statements_digest
from scalecap.text.suggestions import did_you_mean


@dataclass(frozen=True)
class Statement:
    """A labelled statement of a run."""

    row_id: str
    text: str
    p_yes: float
    """See `p_yes_of`."""
    verdict: Verdict
    image: str
    """Hash of its image, which several rows may share; the row's id where the hash is unknown."""


def match_labels(labels: Sequence[Label], run: Run) -> dict[str, list[Statement]]:
    """Matches labels to the run's statements; duplicates are merged.

    Returns:
        Labelled statements by step.

    Raises:
        LabelError: a row, step or statement is not in the run, labels are of another run, or two verdicts
            contradict each other.
    """
    rows = list(run.labelable_rows())
    known = {str(row["row_id"]): dict(checks(row)) for row in rows}
    steps = list(dict.fromkeys(step for checked in known.values() for step in checked))
    digests = {step: statements_digest(rows, step) for step in steps}
    images = _image_hashes(run)
    found: dict[str, list[Statement]] = {}
    for label in distinct(labels):
        if label.step not in digests:
            close = did_you_mean(label.step, steps)
            raise LabelError(f"{label.place}: the run has no check {label.step!r:.80}{close}")
        if label.row_id not in known:
            raise LabelError(
                f"{label.place}: {run.folder} has no row {label.row_id!r:.80}; is this label of another run?"
            )
        if label.run != digests[label.step]:
            raise LabelError(
                f"{label.place} was sampled from run {label.run:.12}, but {run.folder} is run"
                f" {digests[label.step]} at {label.step}, with different statements; pass the folder whose"
                " report was labelled, or label the report of this one"
            )
        scores = known[label.row_id].get(label.step, [])
        record = next((each for each in scores if each["text"] == label.text), None)
        if record is None:
            raise LabelError(
                f"{label.place}: row {label.row_id!r:.80} has no statement {label.text!r:.80} at {label.step}"
            )
        image = images.get(label.row_id, label.row_id)
        statement = Statement(label.row_id, label.text, p_yes_of(record), label.verdict, image)
        found.setdefault(label.step, []).append(statement)
    return found


def data_statements(run: Run, step: str) -> list[Statement]:
    """The statements labelled in the run's data (`labels.check`), without failed rows.

    Raises LabelError if there are none.
    """
    images = _image_hashes(run)
    found, failed = [], 0
    for row in run.rows():
        if row.get("error"):
            failed += 1
            continue
        row_id = str(row["row_id"])
        parts = zip(row[STEP], row[f"{STEP}_verdicts"], row[f"{step}_scores"], strict=True)
        found += [
            Statement(row_id, text, p_yes_of(score), verdict, images.get(row_id, row_id))
            for text, verdict, score in parts
        ]
    if not found:
        raise LabelError(
            f"{run.folder} has no labelled statements: {plural(failed, 'row')} failed, see captions.jsonl"
        )
    return found


def _image_hashes(run: Run) -> dict[str, str]:
    """Known image hashes by row id."""
    return {row_id: image for row_id, image, _ in run.image_records() if image}


def p_yes_of(record: Mapping[str, Any]) -> float:
    """P(yes) of a checked statement; if it has none, 1 if it was kept (whatever the threshold), else -1."""
    p_yes = record.get("p_yes")
    if isinstance(p_yes, int | float):
        return float(p_yes)
    return 1.0 if record["kept"] else -1.0


def one_per_image(statements: Sequence[Statement], seed: int) -> list[Statement]:
    """One random labelled statement of each image, so that labels are independent.

    The sample does not depend on the order of the statements.
    """

    def random_key(statement: Statement) -> bytes:
        content = f"{seed}\n{statement.row_id}\n{statement.text}"
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()

    chosen: dict[str, Statement] = {}
    for statement in sorted(statements, key=random_key):
        chosen.setdefault(statement.image, statement)
    return list(chosen.values())


class LabelledArrays(NamedTuple):
    """Labelled statements as arrays, each (n,)."""

    p_yes: np.ndarray
    """See `p_yes_of`."""
    true: np.ndarray
    image: np.ndarray
    """Image ids, from 0."""

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.image.max(initial=-1)) + 1


def to_arrays(statements: Sequence[Statement]) -> LabelledArrays:
    """Converts statements to arrays."""
    numbers: dict[str, int] = {}
    image = np.array([numbers.setdefault(each.image, len(numbers)) for each in statements], int)
    p_yes = np.array([each.p_yes for each in statements], float)
    return LabelledArrays(p_yes, np.array([each.verdict == "yes" for each in statements], bool), image)
