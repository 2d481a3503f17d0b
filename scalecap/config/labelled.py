"""Labelled statements that the data has already, and the one check that is asked about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalecap.text.suggestions import did_you_mean

STEP = "labelled"
"""The step that reads the statements; `labelled_verdicts` has what the data says of each."""


@dataclass
class LabelsSettings:
    """Labels from columns of the data: one check of the pipeline is asked about these statements, and nothing
    else runs. `scalecap calibrate RUN` makes thresholds of them."""

    check: str | None = None
    """The check, a step with `stage: verify`; None runs the pipeline as it is."""
    text: str = "text"
    """Column of a statement, of a list of them, of a list of {text, label}, or of a text with `tags` or
    `tokens`."""
    label: str | None = None
    """Column of the label, or of a list with one for each statement (or token)."""
    tokens: str | None = None
    """Column of a list of words, in the order of the text, that `label` labels. A sentence is wrong when any
    of its words is."""
    tags: str | None = None
    """`hallucination`: what stands between `<hallucination>` and `</hallucination>` in the text is wrong, and
    so is each sentence that has a part of it."""
    statement: str = "{{ text }}"
    """Jinja template of the statement that the check is asked about, where the text is a question, say."""
    right: list[Any] = field(default_factory=lambda: ["yes", "true", 1, "correct"])
    """Labels that mean true. Case does not matter; null is a label too, if it is listed."""
    wrong: list[Any] = field(default_factory=lambda: ["no", "false", 0, "incorrect"])
    """Labels that mean wrong."""
    unsure: list[Any] = field(default_factory=lambda: ["unsure", "unknown"])
    """Labels that leave it open, which count as wrong."""

    def problems(self, steps: Mapping[str, Any]) -> list[str]:
        """What does not go together, one line each; `steps` are the pipeline's."""
        if self.check is None:
            return []
        checks = [name for name, step in steps.items() if isinstance(step, dict) and _is_check(step)]
        if self.check not in steps:
            return [
                f"labels.check={self.check}: the pipeline has no such step{did_you_mean(self.check, checks)}"
            ]
        step = steps[self.check]
        if self.check not in checks:
            hint = did_you_mean(self.check, checks) if checks else "; it has none: choose another pipeline="
            return [f"labels.check={self.check}: not a check with `stage: verify` and `mode: choose`{hint}"]
        own = [key for key in ("views", "before", "when") if step.get(key) is not None]
        if own:
            return [
                f"labels.check={self.check}: its `{own[0]}` needs other steps, which labelled statements do"
                " not have; choose another check, or label the report of a run"
            ]
        return []

    def restrict_steps(self, steps: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline's steps with the check alone, asked about the data's statements."""
        if self.check is None:
            return dict(steps)
        columns = [self.text, self.label, self.tokens]
        read = {
            "stage": "labelled_statements",
            "columns": list(dict.fromkeys(column for column in columns if column is not None)),
            **{key: value for key, value in vars(self).items() if key != "check"},
        }
        return {STEP: read, self.check: {**steps[self.check], "texts": STEP}}


def _is_check(step: Mapping[str, Any]) -> bool:
    return step.get("stage") == "verify" and step.get("mode", "choose") == "choose"
