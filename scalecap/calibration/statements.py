"""Labels matched to the statements of a run, and one drawn of each picture."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalecap.calibration.labels import Label, LabelError, Verdict, distinct
from scalecap.nearest import nearest
from scalecap.report.folder import Run, checks, drawn_from


@dataclass(frozen=True)
class Statement:
    """A labelled statement of a run."""

    row_id: str
    text: str
    p_yes: float
    """-1 for one that the model did not answer."""
    verdict: Verdict

    @property
    def true(self) -> bool:
        return self.verdict == "yes"


def match(labels: Sequence[Label], run: Run) -> dict[str, list[Statement]]:
    """By step the labelled statements of the run, each once.

    Raises:
        LabelError: a row, step or statement that the run doesn't have, labels of another run, or two verdicts
            that contradict each other.
    """
    rows = list(run.drawable())
    known = {str(row["row_id"]): dict(checks(row)) for row in rows}
    steps = list(dict.fromkeys(step for checked in known.values() for step in checked))
    digests = {step: drawn_from(rows, step) for step in steps}
    found: dict[str, list[Statement]] = {}
    for label in distinct(labels):
        if label.step not in digests:
            close = nearest(label.step, steps)
            raise LabelError(f"{label.place}: the run has no check {label.step!r:.80}; {close}")
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
        p_yes = record.get("p_yes")
        answered = float(p_yes) if isinstance(p_yes, int | float) else -1.0
        statement = Statement(label.row_id, label.text, answered, label.verdict)
        found.setdefault(label.step, []).append(statement)
    return found


def _record(scores: Sequence[Mapping[str, Any]], label: Label) -> Mapping[str, Any]:
    for score in scores:
        if score["text"] == label.text:
            return score
    raise LabelError(
        f"{label.place}: row {label.row_id!r:.80} has no statement {label.text!r:.80} at {label.step}"
    )


def one_a_picture(statements: Sequence[Statement], seed: int) -> list[Statement]:
    """One labelled statement of each row, drawn at random whatever their order.

    Labels of one picture are not independent of each other.
    """

    def drawn(statement: Statement) -> bytes:
        return hashlib.sha256(f"{seed}\n{statement.row_id}\n{statement.text}".encode()).digest()

    chosen: dict[str, Statement] = {}
    for statement in sorted(statements, key=drawn):
        chosen.setdefault(statement.row_id, statement)
    return list(chosen.values())


def arrays(statements: Sequence[Statement]) -> tuple[np.ndarray, np.ndarray]:
    """P(yes) and whether each is true, as `scalecap.calibration.statistics` takes them."""
    p_yes = np.array([each.p_yes for each in statements], float)
    return p_yes, np.array([each.true for each in statements], bool)
