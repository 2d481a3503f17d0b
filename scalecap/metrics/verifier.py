"""How good the yes/no check itself is, on statements whose truth is known."""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scalecap.metrics import records, share
from scalecap.metrics.labels import LabelError, distinct, read_labels
from scalecap.stages import Image, Measures, ModelClient, Role, stage, together
from scalecap.stages.verify import check_threshold
from scalecap.stats import RESAMPLES, Interval, area
from scalecap.text.templates import Template

LABELS = dict.fromkeys(("true", "yes", "1", "1.0"), True) | dict.fromkeys(("false", "no", "0", "0.0"), False)


def quality(rows: Iterable[Sequence[Any]]) -> dict[str, Interval]:
    """Of all rows: balanced accuracy, area under the ROC curve, expected calibration error (ten bins of
    equal width), and the threshold of the best balanced accuracy, with bootstrap intervals over rows.

    Args:
        rows: (measures, answers) of each.

    An unanswered statement counts as wrong, and has no part in what is read from probabilities.
    """
    numbers, counts = array("d"), array("q")
    for row in rows:
        counts.append(len(row[1]))
        for each in row[1]:
            p_yes = math.nan if each["p_yes"] is None else each["p_yes"]
            numbers.extend((p_yes, each["label"], each["right"]))
    answers, lengths = np.array(numbers).reshape(-1, 3), np.array(counts)
    starts = np.cumsum(lengths) - lengths
    found = _quality(answers)
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(RESAMPLES // 4 if found else 0):
        picked = rng.integers(len(lengths), size=len(lengths))
        own = lengths[picked]  # each row's answers stay together
        places = np.arange(own.sum()) + np.repeat(starts[picked] - (np.cumsum(own) - own), own)
        for name, value in _quality(answers[places]).items():
            drawn[name].append(value)
    intervals = {}
    for name, value in found.items():
        low, high = np.percentile(drawn[name] or [value], (2.5, 97.5))
        intervals[name] = Interval(value, float(low), float(high), len(lengths))
    return intervals


def _quality(answers: np.ndarray) -> dict[str, float]:
    """Of (answers, 3): P(yes), label, right. Nothing without a true and a false statement."""
    label, right = answers[:, 1] == 1, answers[:, 2]
    answered = ~np.isnan(answers[:, 0])
    p, said = answers[answered, 0], label[answered]
    true, false = p[said], p[~said]
    if not len(true) or not len(false):
        return {}
    bins = np.minimum((p * 10).astype(int), 9)
    gaps = [abs(p[bins == b].sum() - said[bins == b].sum()) for b in range(10)]
    candidates = np.unique(p)
    accepted = 1 - np.searchsorted(np.sort(true), candidates) / len(true)
    refused = np.searchsorted(np.sort(false), candidates) / len(false)
    best = int(np.argmax(accepted + refused))
    # Between the best probability and the next one below, so that neither lies on the edge.
    edge = (candidates[best] + candidates[best - 1]) / 2 if best else candidates[0]
    return {
        "balanced_accuracy": float((right[label].mean() + right[~label].mean()) / 2),
        "auc": area(true, false),
        "calibration_error": float(sum(gaps) / len(p)),
        "best_threshold": float(edge),
    }


@stage(
    side=["answers"],
    overall=quality,
    better={"unanswered": "lower", "calibration_error": "lower", "best_threshold": "neither"},
)
@dataclass(kw_only=True, eq=False)
class Verifier:
    """Asks the yes/no check about labelled statements, so that its threshold can be chosen.

    Statements are a column `statements` of {text, label}, or one a row in `text` and `label`; a label is
    true or false, yes or no, 1 or 0. Or they are those of label files (`labels: [<file>]`, `row_id: row_id`;
    see `scalecap.calibration`), of all steps or of one (`step`), the unsure ones left out.

    `accuracy` counts statements on the right side of `threshold`, `true_accepted` and `false_refused` those
    of either label, `unanswered` those that were answered neither yes nor no (counted as wrong); over all
    rows come `balanced_accuracy`, `auc`, `calibration_error` and the `best_threshold`. In yes/no sets such as
    POPE (Li et al. 2023, arXiv 2305.10355) the text is the question.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("text",)}

    prompt: Template
    labels: list[str] | None = None
    step: str | None = None
    threshold: float = 0.5
    model: Role = "vlm"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        self.known = _labelled(self.labels, self.step)

    def check(self, columns: Sequence[str]) -> str | None:
        given = [{"statements"}, {"text", "label"}, *([{"row_id"}] if self.labels else [])]
        if any(names <= set(columns) for names in given):
            return None
        return (
            "requires `statements: <column of {text, label}>`, or `text: <column>` and `label: <column>`, or"
            " `row_id: row_id` and `labels: [<file>]`"
        )

    async def __call__(
        self,
        client: ModelClient,
        *,
        image: Image,
        statements: Any = None,
        text: str | None = None,
        label: Any = None,
        row_id: str | None = None,
    ) -> tuple[Measures, list[dict[str, Any]]]:
        if row_id is not None:
            given: Sequence[Mapping[str, Any]] = self.known.get(row_id, [])
        else:
            one = [{"text": text, "label": label}]
            given = one if statements is None else records(statements, "text", "label")
        answers = await together(self._answer(client, each["text"], each["label"], image) for each in given)
        measured = {
            "accuracy": share(each["right"] for each in answers),
            "true_accepted": share(each["right"] for each in answers if each["label"]),
            "false_refused": share(each["right"] for each in answers if not each["label"]),
            "unanswered": share(each["p_yes"] is None for each in answers),
        }
        return measured, answers

    async def _answer(self, client: ModelClient, text: str, label: Any, image: Image) -> dict[str, Any]:
        true = LABELS.get(str(label).strip().casefold())
        if true is None:
            raise ValueError(f"expected a label true or false, yes or no, 1 or 0, got {label!r:.80}")
        if not isinstance(text, str):
            raise ValueError(f"expected a statement as text, got {text!r:.80}")
        prompt = self.prompt.render(text=text)
        chosen = await client.choose(prompt, ("yes", "no"), image=image, model=self.model)
        p_yes = chosen.probabilities[0] if chosen.answered else None
        right = p_yes is not None and (p_yes >= self.threshold) == true
        return {"text": text, "label": true, "p_yes": p_yes, "right": right, "mass": chosen.known_mass}


def _labelled(files: Sequence[str] | None, step: str | None) -> dict[str, list[Mapping[str, Any]]]:
    """By row, the labelled statements of label files; ValueError names what is wrong with them."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    try:
        labels = distinct(read_labels(Path(file).expanduser() for file in files or ()))
    except (LabelError, OSError) as error:
        raise ValueError(f"labels: {error}") from error
    for each in labels:
        if each.verdict != "unsure" and step in (None, each.step):
            found.setdefault(each.row_id, []).append({"text": each.text, "label": each.verdict})
    if files and not found:
        raise ValueError(f"labels: no label of step {step}" if step else "labels: all labels are unsure")
    return found
