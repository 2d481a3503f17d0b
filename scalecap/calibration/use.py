"""Applies a calibration to a run: sets its thresholds, after checking that its scope matches."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scalecap.calibration.record import CalibrationError, StepCalibration, promise_text, read_calibration
from scalecap.calibration.scope import describe_data, identities, scope, upstream
from scalecap.config.effects import differences
from scalecap.config.settings import Settings
from scalecap.interpreter.pipeline import Pipeline
from scalecap.messages import plural
from scalecap.text.suggestions import did_you_mean


@dataclass(frozen=True)
class AppliedPromise:
    """A promise in effect at one of a run's checks."""

    wrong: float
    threshold: float
    calibration: StepCalibration

    def __str__(self) -> str:
        made = self.calibration
        found = made.promise(self.wrong)
        assert found is not None
        labels = f"{made.images} labels, one per image"
        if found.bound == "betting":
            labels = f"{made.labels} labels of {made.images} images"
        whose = ", not this pipeline's statements" if made.given else ""
        return (
            f"guaranteed with {100 * made.confidence:g} % confidence:"
            f" {promise_text(self.wrong, given=made.given)} ({labels}, {found.bound} bound;"
            f" {made.source}{whose})"
        )


def apply_promises(settings: Settings) -> tuple[Settings, dict[str, AppliedPromise]]:
    """Sets the thresholds of the calibrated steps to those that guarantee `wrong`.

    Returns:
        The new settings, and the promises by step.

    Raises:
        CalibrationError: there is no such calibration, step or promise.
    """
    if settings.calibration is None:
        return settings, {}
    found = read_calibration(Path(settings.calibration).expanduser())
    wrong = settings.wrong
    wanted = wrong if isinstance(wrong, Mapping) else dict.fromkeys(found.steps, wrong)
    steps, applied = deepcopy(settings.pipeline.steps), {}
    for step, share in wanted.items():
        if step not in found.steps:
            close = did_you_mean(step, list(found.steps))
            raise CalibrationError(f"wrong: {settings.calibration} has no step {step!r}{close}")
        if not isinstance(steps.get(step), dict):
            there = [name for name in found.steps if isinstance(steps.get(name), dict)]
            others = ", ".join(f"{name}: {share}" for name in there) or "STEP: SHARE"
            raise CalibrationError(
                f"{settings.calibration} is about the step {step}, which this pipeline does not have; name"
                f" the steps that it has: wrong={{{others}}}"
            )
        applied[step] = _applied(step, float(share), found.steps[step], settings.calibration)
        steps[step]["threshold"] = applied[step].threshold
    return replace(settings, pipeline=replace(settings.pipeline, steps=steps)), applied


def _applied(step: str, wrong: float, made: StepCalibration, path: str) -> AppliedPromise:
    promise = made.promise(wrong)
    if not made.promises:
        raise CalibrationError(
            f"{path} guarantees nothing about {step}: its labels are not a random sample (uncertain first)"
        )
    if made.confidence <= 0:
        raise CalibrationError(
            f"{path} guarantees nothing about {step}: the run was calibrated too often with different labels;"
            " label another run"
        )
    if promise is None or promise.threshold is None:
        available = [f"{each.wrong:g}" for each in made.promises if each.threshold is not None]
        reason = (
            f"was not created with --wrong {wrong:g}"
            if promise is None
            else f"has no threshold for it with its {made.labels} labels"
        )
        raise CalibrationError(
            f"wrong={wrong:g}: {path} {reason} for {step}; available: {', '.join(available) or 'none'}"
        )
    return AppliedPromise(wrong, promise.threshold, made)


def check_scope(applied: Mapping[str, AppliedPromise], pipeline: Pipeline, settings: Settings) -> None:
    """Raises CalibrationError if the settings of a check, of its upstream steps or models differ."""
    for step, promise in applied.items():
        made = promise.calibration
        _compare(step, settings, made.scope, scope(pipeline, step, settings, given=made.given))


def check_models(
    applied: Mapping[str, AppliedPromise], pipeline: Pipeline, settings: Settings, models: Mapping[str, str]
) -> None:
    """Raises CalibrationError if a loaded model differs; `models` are identities by role."""
    for step, promise in applied.items():
        made = promise.calibration
        _compare(step, settings, made.identities, identities(pipeline, step, models, given=made.given))


def _compare(step: str, settings: Settings, labelled: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if changes := differences(labelled, now):
        raise CalibrationError(
            f"{settings.calibration} does not apply to this run's {step}: the labelled run differs"
            f" ({changes}); restore these settings, or run without calibration=, then label and calibrate"
            " that run"
        )


def data_notes(applied: Mapping[str, AppliedPromise], settings: Settings) -> list[str]:
    """Notes on promises whose labels are of other data than the run's."""
    return [
        f"{step}: labels are of images from {promise.calibration.source}; the guarantee holds if this run's"
        " images come from the same distribution."
        for step, promise in applied.items()
        if not promise.calibration.given and promise.calibration.source != describe_data(settings)
    ]


def fallback_notes(
    applied: Mapping[str, AppliedPromise], pipeline: Pipeline, flags: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """Notes on rows that may have kept their unchecked first caption.

    Args:
        flags: by step, the number of rows with each flag.
    """
    return [
        f"{step.name}: {plural(rows, 'row')} fell back: where no sentence passed, the caption is the"
        " initial one, unchecked and without a guarantee;"
        f" set pipeline.steps.{step.name}.fallback=empty to leave it empty."
        for step in pipeline.steps
        if applied
        and step.settings.get("fallback") == "initial"
        and (rows := flags.get(step.name, {}).get("fallback", 0))
    ]


def describe_promises(
    applied: Mapping[str, AppliedPromise],
    pipeline: Pipeline,
    edited: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
    """By check with a threshold, its guarantee: {threshold, wrong, sentence}; `wrong` is None without one.

    Args:
        edited: by step, the number of rows edited by hand, which void the promises of checks that read them.
    """
    found: dict[str, dict[str, Any]] = {}
    for step in pipeline.steps:
        threshold, wrong = step.settings.get("threshold"), None
        promise = applied.get(step.name)
        if promise and (edits := hand_edits(pipeline, step.name, promise.calibration.given, edited)):
            sentence = f"{edits}: no guarantee"
        elif promise:
            wrong, sentence = promise.wrong, str(promise)
        elif "scores" in step.stage.side and threshold is not None and step.settings.get("mode") != "sampled":
            sentence = f"threshold {threshold:g} set by hand: no guarantee"
        else:
            continue
        found[step.name] = {"threshold": threshold, "wrong": wrong, "sentence": sentence}
    return found


def hand_edits(pipeline: Pipeline, step: str, given: bool, edited: Mapping[str, int]) -> str:
    """Describes the rows edited by hand at a check or upstream of it; empty for none."""
    names = [each.name for each in upstream(pipeline, step, given) if edited.get(each.name)]
    rows = max((edited[name] for name in names), default=0)
    return f"{rows} row{'s' * (rows > 1)} edited by hand at {', '.join(names)}" if rows else ""
