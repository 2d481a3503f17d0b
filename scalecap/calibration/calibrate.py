"""A run and its labels in, a calibration and what to tell of it out."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from scalecap.calibration.labels import Label
from scalecap.calibration.record import (
    NAME,
    Calibration,
    CalibrationError,
    Promise,
    StepCalibration,
    read_calibration,
)
from scalecap.calibration.scope import identities, scope
from scalecap.calibration.statements import Statement, arrays, match, one_a_picture
from scalecap.calibration.statistics import THRESHOLDS, Share, counts, labels_needed, loosest, most_wrong
from scalecap.data.files import public
from scalecap.journal import Journal
from scalecap.pipeline import Pipeline
from scalecap.report.folder import Run, checks
from scalecap.settings import Settings, from_config

PROMISES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Wrong shares that are always tried, beside the one asked for."""
UNCERTAIN = "uncertain"
"""How labels were drawn that promise nothing: those first of which the check was least sure."""


@dataclass(frozen=True)
class Outcome:
    """What was found of one check."""

    step: str
    calibration: StepCalibration
    verdicts: Mapping[str, int]
    """Labels used, by verdict."""
    left_out: int
    """Further labels of pictures that have one."""
    threshold: float
    """The run's own."""
    accuracy: Share
    """Of the labelled statements, those on the right side of the run's own threshold."""
    true_kept: Share
    wrong_dropped: Share
    run_kept: Mapping[float, Share]
    """By threshold of a promise, the share of all statements of the run that it keeps."""
    looks: int


def calibrate(
    folder: Path, labels: Sequence[Label], *, wrong: float, confidence: float, seed: int = 0
) -> list[Outcome]:
    """Calibrates each check of a run that has labels, and writes `calibration.json` into its folder.

    Args:
        labels: of any of the run's yes/no checks.
        wrong: the promise asked for; those in `PROMISES` are tried, too.
        confidence: of each promise.
        seed: of the draw among several labels of one picture.

    Raises:
        LabelError: a label doesn't fit the run.
        CalibrationError: a step can't be calibrated.
        JournalError: the folder holds no run, or one that is being written.
    """
    run = Run(folder, folder.resolve().name)
    settings, pipeline = _read_run(folder)
    path = folder / NAME
    before = read_calibration(path) if path.exists() else Calibration({}, {})
    found, steps, looks = [], dict(before.steps), dict(before.looks)
    for step, statements in match(labels, run).items():
        threshold = _threshold(pipeline, step)
        chosen = one_a_picture(statements, seed)
        digest = _digest(chosen)
        looks[step] = list(dict.fromkeys([*looks.get(step, []), digest]))
        drawn_at_random = not any(label.step == step and label.draw == UNCERTAIN for label in labels)
        told_confidence = max(0.0, 1 - (1 - confidence) * len(looks[step])) if drawn_at_random else 0.0
        p_yes, true = arrays(chosen)
        steps[step] = StepCalibration(
            labels=len(chosen),
            pictures=public(f"data={settings.data.source} {settings.data.path or ''}".rstrip()),
            confidence=round(told_confidence, 6),
            scope=scope(pipeline, step, settings),
            identities=identities(pipeline, step, run.summary.get("models", {})),
            reliability=tuple(reliability(p_yes, true)),
            promises=tuple(promises(p_yes, true, sorted({*PROMISES, wrong}), confidence))
            if drawn_at_random
            else (),
        )
        kept = p_yes >= threshold
        found.append(
            Outcome(
                step=step,
                calibration=steps[step],
                verdicts={v: sum(each.verdict == v for each in chosen) for v in ("yes", "no", "unsure")},
                left_out=len(statements) - len(chosen),
                threshold=threshold,
                accuracy=Share(int((kept == true).sum()), len(true)),
                true_kept=Share(int((kept & true).sum()), int(true.sum())),
                wrong_dropped=Share(int((~kept & ~true).sum()), int((~true).sum())),
                run_kept=_run_kept(run, step, steps[step].promises),
                looks=len(looks[step]),
            )
        )
    Calibration(steps, looks).write(path)
    return found


def promises(
    p_yes: np.ndarray, true: np.ndarray, wrongs: Iterable[float], confidence: float
) -> Iterable[Promise]:
    """For each share of wrong statements the loosest threshold that keeps it, where there is one."""
    kept, kept_wrong = counts(p_yes, true)
    for wrong in wrongs:
        place = loosest(kept, kept_wrong, most_wrong(len(p_yes), wrong, confidence))
        if place is None:
            yield Promise(wrong, None, labels_needed=labels_needed(kept, kept_wrong, wrong, confidence))
            continue
        share = Share(int(kept[place] - kept_wrong[place]), int(true.sum()))
        yield Promise(
            wrong=wrong,
            threshold=float(THRESHOLDS[place]),
            kept=int(kept[place]),
            kept_wrong=int(kept_wrong[place]),
            true_kept=(share.mean, *share.interval) if share.of else None,
        )


def reliability(p_yes: np.ndarray, true: np.ndarray) -> Iterable[dict[str, Any]]:
    """The calibration plot's points (see `StepCalibration.reliability`)."""
    tenths = np.minimum((p_yes * 10).astype(int), 9)
    for tenth in range(10):
        inside = (tenths == tenth) & (p_yes >= 0)
        if inside.any():
            share = Share(int(true[inside].sum()), int(inside.sum()))
            yield {
                "x": float(p_yes[inside].mean()),
                "y": [share.mean, *share.interval],
                "label": f"{share.of:,}",
            }


def _read_run(folder: Path) -> tuple[Settings, Pipeline]:
    """The settings and the pipeline that made the run's rows."""
    with Journal(folder, None) as journal:
        if journal.mixed:
            raise CalibrationError(
                f"{folder} has rows of several configs (resume=force): label a run that was made with one"
            )
        config = {name: value for name, value in journal.config.items() if name != "code"}
    settings = from_config(OmegaConf.create(config | {"output": str(folder)}))
    pipeline = Pipeline.build(
        settings.pipeline.steps, None, imports=settings.pipeline.imports, sampling=settings.sampling
    )
    return settings, pipeline


def _threshold(pipeline: Pipeline, step: str) -> float:
    """The step's own; CalibrationError where there is no threshold of P(yes)."""
    found = next(each for each in pipeline.steps if each.name == step)
    if found.stage.name != "verify" or found.settings["mode"] != "choose":
        raise CalibrationError(
            f"{step} can't be calibrated: it has no threshold of P(yes)"
            f" (stage {found.stage.name}); label a step with `stage: verify` and `mode: choose`"
        )
    return float(found.settings["threshold"])


def _run_kept(run: Run, step: str, promises: Sequence[Promise]) -> dict[float, Share]:
    """Of all statements of the run, those that each promise's threshold keeps."""
    p_yes = [
        score["p_yes"] if isinstance(score.get("p_yes"), int | float) else -1.0
        for row in islice(run.rows(), None)
        for name, scores in checks(row)
        if name == step
        for score in scores
    ]
    values = np.array(p_yes, float)
    thresholds = [each.threshold for each in promises if each.threshold is not None]
    return {each: Share(int((values >= each).sum()), len(values)) for each in thresholds}


def _digest(statements: Sequence[Statement]) -> str:
    lines = sorted(f"{each.row_id}\n{each.text}\n{each.verdict}" for each in statements)
    return hashlib.sha256("\n\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]
