"""A calibration used: thresholds set from promises, and refused where what was labelled is not what runs."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scalecap.calibration.record import CalibrationError, StepCalibration, read_calibration, sentence
from scalecap.calibration.scope import differences, identities, pictures, scope, upstream
from scalecap.config.settings import Settings
from scalecap.interpreter.pipeline import Pipeline
from scalecap.text.suggestions import did_you_mean


@dataclass(frozen=True)
class Applied:
    """A promise that a run keeps at one of its checks."""

    wrong: float
    threshold: float
    calibration: StepCalibration

    def __str__(self) -> str:
        made = self.calibration
        found = made.promise(self.wrong)
        assert found is not None
        labels = f"{made.images} labels, one an image"
        if found.bound == "betting":
            labels = f"{made.labels} labels of {made.images} images"
        whose = " has them; not this pipeline's statements" if made.given else ""
        return (
            f"promised with {100 * made.confidence:g} % confidence:"
            f" {sentence(self.wrong, given=made.given)} ({labels}, {found.bound} bound;"
            f" {made.pictures}{whose})"
        )


def apply(settings: Settings) -> tuple[Settings, dict[str, Applied]]:
    """The settings with thresholds that keep what `wrong` promises, and each promise by its step.

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
                f"{settings.calibration} promises something of the step {step}, which this pipeline does not"
                f" have; name those that it has: wrong={{{others}}}"
            )
        applied[step] = _applied(step, float(share), found.steps[step], settings.calibration)
        steps[step]["threshold"] = applied[step].threshold
    return replace(settings, pipeline=replace(settings.pipeline, steps=steps)), applied


def _applied(step: str, wrong: float, made: StepCalibration, path: str) -> Applied:
    promise = made.promise(wrong)
    if not made.promises:
        raise CalibrationError(f"{path} promises nothing of {step}: its labels were drawn unsure first")
    if made.confidence <= 0:
        raise CalibrationError(
            f"{path} promises nothing of {step}: too many calibrations of one run, each with other labels;"
            " label another run"
        )
    if promise is None or promise.threshold is None:
        there = [f"{each.wrong:g}" for each in made.promises if each.threshold is not None]
        fix = f"it has thresholds for {', '.join(there)}" if there else "it has a threshold for none"
        why = (
            f"was not made with --wrong {wrong:g}"
            if promise is None
            else f"found no threshold that keeps it with its {made.labels} labels"
        )
        raise CalibrationError(f"wrong={wrong:g}: {path} {why} for {step}: {fix}; or label more")
    return Applied(wrong, promise.threshold, made)


def check_scope(applied: Mapping[str, Applied], pipeline: Pipeline, settings: Settings) -> None:
    """CalibrationError where the check, a step that it reads from or a model is not as it was labelled."""
    for step, promise in applied.items():
        now = scope(pipeline, step, settings, given=promise.calibration.given)
        if changes := differences(promise.calibration.scope, now):
            raise CalibrationError(_refused(step, settings, changes))


def check_models(
    applied: Mapping[str, Applied], pipeline: Pipeline, settings: Settings, models: Mapping[str, str]
) -> None:
    """CalibrationError where a loaded model (its identity by role) is not the one that was labelled."""
    for step, promise in applied.items():
        now = identities(pipeline, step, models, given=promise.calibration.given)
        if changes := differences(promise.calibration.identities, now):
            raise CalibrationError(_refused(step, settings, changes))


def _refused(step: str, settings: Settings, changes: list[str]) -> str:
    shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    return (
        f"{settings.calibration} promises nothing about this run's {step}: what it was labelled with has"
        f" changed ({shown}). Run without calibration=, label that run's report and calibrate it, or put"
        " the setting back"
    )


def notes(applied: Mapping[str, Applied], settings: Settings) -> list[str]:
    """What a reader must know of labels of other pictures than the run's."""
    return [
        f"{step}: labelled were pictures of {promise.calibration.pictures}; the promise holds for these if"
        " they are drawn from the same kind."
        for step, promise in applied.items()
        if not promise.calibration.given and promise.calibration.pictures != pictures(settings)
    ]


def fallbacks(
    applied: Mapping[str, Applied], pipeline: Pipeline, flags: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """What a reader must know of rows that may have kept their first caption.

    Args:
        flags: by step, how many rows have each flag there.
    """
    return [
        f"{step.name}: {rows} rows fell back: where no sentence passed, the caption is the first one,"
        " unchecked, and nothing is promised of it."
        f" pipeline.steps.{step.name}.fallback=empty leaves it empty."
        for step in pipeline.steps
        if applied
        and step.settings.get("fallback") == "initial"
        and (rows := flags.get(step.name, {}).get("fallback", 0))
    ]


def told(
    applied: Mapping[str, Applied], pipeline: Pipeline, edited: Mapping[str, int] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """By check with a threshold, what is promised about it: {threshold, wrong, sentence}.

    `wrong` is None when nothing is.

    Args:
        edited: by step, how many rows somebody edited there: a check that reads them promises nothing.
    """
    found: dict[str, dict[str, Any]] = {}
    for step in pipeline.steps:
        threshold = step.settings.get("threshold")
        promise = applied.get(step.name)
        if promise and (by_hand := hand(pipeline, step.name, promise.calibration.given, edited)):
            nothing = f"{by_hand}: nothing is promised"
            found[step.name] = {"threshold": threshold, "wrong": None, "sentence": nothing}
        elif promise:
            found[step.name] = {"threshold": threshold, "wrong": promise.wrong, "sentence": str(promise)}
        elif "scores" in step.stage.side and threshold is not None and step.settings.get("mode") != "sampled":
            by_hand = f"threshold {threshold:g} set by hand: nothing is promised"
            found[step.name] = {"threshold": threshold, "wrong": None, "sentence": by_hand}
    return found


def hand(pipeline: Pipeline, step: str, given: bool, edited: Mapping[str, int]) -> str:
    """Which rows of a check, or of a step that it reads from, were edited by hand; empty for none."""
    names = [each.name for each in upstream(pipeline, step, given) if edited.get(each.name)]
    rows = max((edited[name] for name in names), default=0)
    return f"{rows} row{'s' * (rows > 1)} edited by hand at {', '.join(names)}" if rows else ""
