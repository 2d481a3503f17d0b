"""Settings of labelled statements in the data, which one check of the pipeline is run on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalecap.text.suggestions import did_you_mean

STEP = "labelled"
"""The step that reads the statements; `labelled_verdicts` holds their labels."""
_DROPPED = ("limit", "adds_to", "rounds")


@dataclass
class LabelsSettings:
    """Labels from columns of the data: one check of the pipeline runs on these statements, and no other step.
    `scalecap calibrate RUN` computes thresholds from them."""

    check: str | None = None
    """The check, a step with `stage: verify`; None runs the whole pipeline."""
    text: str = "text"
    """Column of a statement, of a list of them, of a list of {text, label}, or of a text with `tags` or
    `tokens`."""
    label: str | None = None
    """Column of the label, or of a list of labels, one per statement (or token)."""
    tokens: str | None = None
    """Column of a list of words in text order, labelled by `label`. A sentence with a wrong word is wrong."""
    tags: str | None = None
    """Name of a tag that marks wrong spans, e.g. `hallucination` for `<hallucination>…</hallucination>`. Each
    sentence that overlaps one is wrong."""
    statement: str = "{{ text }}"
    """Jinja template of the statement to check, e.g. where `text` is a question."""
    right: list[Any] = field(default_factory=lambda: ["yes", "true", 1, "correct"])
    """Labels that mean true, in any case; null counts if it is listed."""
    wrong: list[Any] = field(default_factory=lambda: ["no", "false", 0, "incorrect"])
    """Labels that mean wrong."""
    unsure: list[Any] = field(default_factory=lambda: ["unsure", "unknown"])
    """Labels that mean undecided, which count as wrong."""

    def problems(self, steps: Mapping[str, Any]) -> list[str]:
        """Invalid values, one message each; `steps` are those of the pipeline."""
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
                f"labels.check={self.check}: its `{own[0]}` depends on other steps, which do not run on"
                " labelled statements; choose another check, or label the report of a run"
            ]
        return []

    def restrict_steps(self, steps: Mapping[str, Any]) -> dict[str, Any]:
        """The steps of the pipeline reduced to the check, which reads the labelled statements."""
        if self.check is None:
            return dict(steps)
        columns = [self.text, self.label, self.tokens]
        read = {
            "stage": "labelled_statements",
            "columns": list(dict.fromkeys(column for column in columns if column is not None)),
            **{key: value for key, value in vars(self).items() if key != "check"},
        }
        # Its limit and its loop may name other steps; neither changes how a statement is judged.
        check = {key: value for key, value in steps[self.check].items() if key not in _DROPPED}
        return {STEP: read, self.check: {**check, "texts": STEP}}


def _is_check(step: Mapping[str, Any]) -> bool:
    return step.get("stage") == "verify" and step.get("mode", "choose") == "choose"
