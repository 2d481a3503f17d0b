"""Labelled statements of a run, by its report or by its data, and one drawn of each image."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scalecap.config.labelled import STEP
from scalecap.metrics.labels import Label, LabelError, Verdict, distinct
from scalecap.run.folder import Run, checks, statements_digest
from scalecap.text.suggestions import did_you_mean


@dataclass(frozen=True)
class Statement:
    """A labelled statement of a run."""

    row_id: str
    text: str
    p_yes: float
    """-1 for one that the model did not answer."""
    verdict: Verdict
    image: str
    """The hash of its image, since several rows may show one; the row's id where the image is not known."""

    @property
    def true(self) -> bool:
        return self.verdict == "yes"


def match(labels: Sequence[Label], run: Run) -> dict[str, list[Statement]]:
    """By step the labelled statements of the run, each once.

    Raises:
        LabelError: a row, step or statement that the run doesn't have, labels of another run, or two verdicts
            that contradict each other.
    """
    rows = list(run.labelable_rows())
    known = {str(row["row_id"]): dict(checks(row)) for row in rows}
    steps = list(dict.fromkeys(step for checked in known.values() for step in checked))
    digests = {step: statements_digest(rows, step) for step in steps}
    images = _images(run)
    found: dict[str, list[Statement]] = {}
    for label in distinct(labels):
        if label.step not in digests:
            close = did_you_mean(label.step, steps)
            raise LabelError(f"{label.place}: the run has no check {label.step!r:.80}{close}")
        if label.row_id not in known:
            raise LabelError(
                f"{label.place}: {run.folder} has no row {label.row_id!r:.80}; is it a label of another run?"
            )
        if label.run != digests[label.step]:
            raise LabelError(
                f"{label.place} was drawn from run {label.run:.12}, but {run.folder} is run"
                f" {digests[label.step]} at {label.step}: its statements are others, so that a draw from them"
                " says nothing here. Give the folder whose report was labelled, or label this one's"
            )
        record = _record(known[label.row_id].get(label.step, []), label)
        image = images.get(label.row_id, label.row_id)
        statement = Statement(label.row_id, label.text, _answered(record), label.verdict, image)
        found.setdefault(label.step, []).append(statement)
    return found


def of_the_data(run: Run, step: str) -> list[Statement]:
    """The statements that the run's data has labels of (`labels.check`), failed rows left out.

    Raises:
        LabelError: there are none.
    """
    images = _images(run)
    found, failed = [], 0
    for row in run.rows():
        if row.get("error"):
            failed += 1
            continue
        row_id = str(row["row_id"])
        parts = zip(row[STEP], row[f"{STEP}_verdicts"], row[f"{step}_scores"], strict=True)
        found += [
            Statement(row_id, text, _answered(score), verdict, images.get(row_id, row_id))
            for text, verdict, score in parts
        ]
    if not found:
        raise LabelError(f"{run.folder} has no labelled statement: {failed} rows failed, see captions.jsonl")
    return found


def _images(run: Run) -> dict[str, str]:
    """The hash of each row's image, where it is known."""
    return {row_id: image for row_id, image, _ in run.image_records() if image}


def _answered(record: Mapping[str, Any]) -> float:
    p_yes = record.get("p_yes")
    return float(p_yes) if isinstance(p_yes, int | float) else -1.0


def _record(scores: Sequence[Mapping[str, Any]], label: Label) -> Mapping[str, Any]:
    for score in scores:
        if score["text"] == label.text:
            return score
    raise LabelError(
        f"{label.place}: row {label.row_id!r:.80} has no statement {label.text!r:.80} at {label.step}"
    )


def one_an_image(statements: Sequence[Statement], seed: int) -> list[Statement]:
    """One labelled statement of each image, drawn at random whatever their order.

    Labels of one image are not independent of each other.
    """

    def drawn(statement: Statement) -> bytes:
        return hashlib.sha256(f"{seed}\n{statement.row_id}\n{statement.text}".encode()).digest()

    chosen: dict[str, Statement] = {}
    for statement in sorted(statements, key=drawn):
        chosen.setdefault(statement.image, statement)
    return list(chosen.values())


class Labelled(NamedTuple):
    """Labelled statements as arrays, each (n,)."""

    p_yes: np.ndarray
    """-1 for one that the model did not answer."""
    true: np.ndarray
    image: np.ndarray
    """The number of its image, from 0 on."""

    @property
    def images(self) -> int:
        return int(self.image.max(initial=-1)) + 1


def arrays(statements: Sequence[Statement]) -> Labelled:
    """As `scalecap.calibration.statistics` and `.losses` take them."""
    numbers: dict[str, int] = {}
    image = np.array([numbers.setdefault(each.image, len(numbers)) for each in statements], int)
    p_yes = np.array([each.p_yes for each in statements], float)
    return Labelled(p_yes, np.array([each.true for each in statements], bool), image)
