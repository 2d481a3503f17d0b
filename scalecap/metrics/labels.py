"""Label files: JSON lines of {row_id, step, text, verdict, author, time, run, draw}.

The report page writes them; others may too. `verdict` is yes, no or unsure; `run` is the digest of the
statements that were drawn from (`run.folder.statements_digest`); `draw` is how (`random`, or `uncertain`:
those first of which the check is least sure). An unsure verdict counts as no, so that a promise holds
whatever is true.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scalecap.text.suggestions import did_you_mean

Verdict = Literal["yes", "no", "unsure"]
VERDICTS = ("yes", "no", "unsure")
_TEXTS = ("row_id", "step", "text", "verdict", "run")
"""Keys that a label must have."""


class LabelError(Exception):
    """A label file is invalid; the message names the file, the line and the fix."""


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


def read_labels(paths: Iterable[Path]) -> list[Label]:
    """All labels of the files. Raises LabelError for an invalid line, OSError for an unreadable file."""
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
                shown = line.decode("utf-8", "replace").strip()[:80]
                raise LabelError(f"{place}: expected an object with {', '.join(_TEXTS)}, got {shown}")
            for key in _TEXTS:
                if not isinstance(found.get(key), str):
                    raise LabelError(f"{place}: expected a text in {key!r}, got {found.get(key)!r:.80}")
            if found["verdict"] not in VERDICTS:
                close = did_you_mean(found["verdict"], VERDICTS)
                raise LabelError(f"{place}: unknown verdict {found['verdict']!r:.80}{close}")
            yield Label(**{key: found[key] for key in _TEXTS}, draw=str(found.get("draw", "")), place=place)
    if empty:
        raise LabelError(f"{path} has no labels")


def distinct(labels: Iterable[Label]) -> list[Label]:
    """Each statement's label once. Raises LabelError where two contradict each other."""
    first: dict[tuple[str, str, str], Label] = {}
    for label in labels:
        before = first.setdefault((label.row_id, label.step, label.text), label)
        if before.verdict != label.verdict:
            raise LabelError(
                f"{before.place} and {label.place} contradict each other ({before.verdict},"
                f" {label.verdict}) about row {label.row_id!r:.80}: {label.text!r:.80}. Keep one of them"
            )
    return list(first.values())
