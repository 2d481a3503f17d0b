"""Label files: JSON lines of {row_id, step, text, verdict, author, time, run, draw}.

The report page writes them; others may too. `verdict` is yes, no or unsure; `run` is the digest of the
statements that were drawn from (`report.folder.drawn_from`); `draw` is how (`random`, or `uncertain`: those
first of which the check is least sure). An unsure verdict counts as no, so that a promise holds whatever is
true.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scalecap.nearest import nearest
from scalecap.report.folder import Run, checks, drawn_from

Verdict = Literal["yes", "no", "unsure"]
VERDICTS = ("yes", "no", "unsure")
_TEXTS = ("row_id", "step", "text", "verdict", "run")
"""Keys that a label must have."""


class LabelError(Exception):
    """A label file doesn't fit; the message names the file, the line and the fix."""


@dataclass(frozen=True)
class Label:
    """One line of a label file."""

    row_id: str
    step: str
    text: str
    verdict: Verdict
    run: str
    draw: str
    place: str
    """File and line, for messages."""


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


def read_labels(paths: Iterable[Path]) -> list[Label]:
    """All labels of the files. Raises LabelError for a line that is none, OSError for an unreadable file."""
    return [label for path in paths for label in _read(path)]


def _read(path: Path) -> Iterator[Label]:
    empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            empty, place = False, f"{path} line {number}"
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LabelError(f"{place} is not JSON: {error}") from error
            if not isinstance(found, dict):
                raise LabelError(f"{place}: expected an object with {', '.join(_TEXTS)}, got {_short(line)}")
            for key in _TEXTS:
                if not isinstance(found.get(key), str):
                    raise LabelError(f"{place}: expected a text in {key!r}, got {found.get(key)!r:.80}")
            if found["verdict"] not in VERDICTS:
                close = nearest(found["verdict"], VERDICTS)
                raise LabelError(f"{place}: unknown verdict {found['verdict']!r:.80}; {close}")
            yield Label(**{key: found[key] for key in _TEXTS}, draw=str(found.get("draw", "")), place=place)
    if empty:
        raise LabelError(f"{path} holds no labels")


def _short(line: bytes) -> str:
    return line.decode("utf-8", "replace").strip()[:80]


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
    first: dict[tuple[str, str, str], Label] = {}
    found: dict[str, list[Statement]] = {}
    for label in labels:
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
        key = (label.row_id, label.step, label.text)
        if before := first.get(key):
            if before.verdict != label.verdict:
                raise LabelError(
                    f"{before.place} and {label.place} contradict each other ({before.verdict},"
                    f" {label.verdict}) about row {label.row_id!r:.80}: {label.text!r:.80}. Keep one of them"
                )
            continue
        first[key] = label
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
