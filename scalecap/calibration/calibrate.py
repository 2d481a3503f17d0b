"""A run and its labels in, a calibration and what to tell of it out."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from scalecap.calibration.losses import bet, images_needed, loosest_by_losses
from scalecap.calibration.record import (
    NAME,
    Bound,
    Calibration,
    CalibrationError,
    Promise,
    StepCalibration,
    read_calibration,
)
from scalecap.calibration.scope import identities, pictures, scope
from scalecap.calibration.statements import Labelled, Statement, arrays, match, of_the_data, one_an_image
from scalecap.calibration.statistics import THRESHOLDS, Share, counts, labels_needed, loosest, most_wrong
from scalecap.calibration.use import hand
from scalecap.config.settings import Settings, from_config
from scalecap.interpreter.pipeline import Pipeline
from scalecap.metrics.labels import Label
from scalecap.run.folder import Run, checks
from scalecap.run.journal import Journal

PROMISES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Wrong shares that are always tried, beside the one asked for."""
MANY = 20
"""From so many wrong ones on, promised of all images (`wrong` times images), the losses of images say more
than one label of each; below, betting on them costs more than the further labels bring."""
SHOWN = 3
"""Failed rows that are named."""
UNCERTAIN = "uncertain"
"""How labels were drawn that promise nothing: those first of which the check was least sure."""


@dataclass(frozen=True)
class Outcome:
    """What was found of one check."""

    step: str
    calibration: StepCalibration
    verdicts: Mapping[str, int]
    """Labels used, by verdict."""
    threshold: float
    """The run's own."""
    accuracy: Share
    """Of the labelled statements, those on the right side of the run's own threshold."""
    true_kept: Share
    wrong_dropped: Share
    run_kept: Mapping[float, Share]
    """By threshold of a promise, the share of all statements of the run that it keeps."""
    looks: int
    left_out: Sequence[str]
    """Rows of the run of which nothing is labelled, for reading."""


def calibrate(
    folder: Path, labels: Sequence[Label] | None, *, wrong: float, confidence: float, seed: int = 0
) -> list[Outcome]:
    """Calibrates each check of a run that has labels, and writes `calibration.json` into its folder.

    Args:
        labels: of any of the run's yes/no checks; None takes those that its data has (`labels=`).
        wrong: the promise asked for; those in `PROMISES` are tried, too.
        confidence: of each promise.
        seed: of the draw of one among several labels of an image.

    Raises:
        LabelError: a label doesn't fit the run.
        CalibrationError: a step can't be calibrated.
        JournalError: the folder holds no run, or one that is being written.
    """
    run = Run(folder, folder.resolve().name)
    settings, pipeline = _read_run(folder)
    path, check = folder / NAME, settings.labels.check
    before = read_calibration(path) if path.exists() else Calibration({}, {})
    if labels is not None:
        labelled = match(labels, run)
    elif check is not None:
        labelled = {check: of_the_data(run, check)}
    else:
        raise CalibrationError(
            f"the data of {folder} has no labels: give those of its report with --labels labels.jsonl, or run"
            " with labels=… (conf/labels)"
        )
    edited = Counter(
        step for row in run.rows() for step, flags in (row.get("flags") or {}).items() if "edited" in flags
    )
    left_out = _left_out(run)
    found, steps, looks = [], dict(before.steps), dict(before.looks)
    for step, statements in labelled.items():
        threshold = _threshold(pipeline, step)
        if by_hand := hand(pipeline, step, check is not None, edited):
            raise CalibrationError(
                f"{folder}: {by_hand}, so that its statements are not all the pipeline's: label a run without"
                " edits=, in another output= (equal requests come from the cache)"
            )
        looks[step] = list(dict.fromkeys([*looks.get(step, []), _digest(statements, seed)]))
        uncertain = any(label.step == step and label.draw == UNCERTAIN for label in labels or ())
        told_confidence = 0.0 if uncertain else max(0.0, 1 - (1 - confidence) * len(looks[step]))
        every, given = arrays(statements), check is not None
        drawn = arrays(one_an_image(statements, seed))
        wrongs = [] if uncertain else sorted({*PROMISES, wrong})
        steps[step] = StepCalibration(
            labels=len(statements),
            images=every.images,
            given=given,
            pictures=pictures(settings),
            confidence=round(told_confidence, 6),
            scope=scope(pipeline, step, settings, given=given),
            identities=identities(pipeline, step, run.summary.get("models", {}), given=given),
            reliability=tuple(reliability(every)),
            promises=tuple(promises(every, drawn, wrongs, confidence)),
        )
        kept, true = every.p_yes >= threshold, every.true
        found.append(
            Outcome(
                step=step,
                calibration=steps[step],
                verdicts={v: sum(each.verdict == v for each in statements) for v in ("yes", "no", "unsure")},
                threshold=threshold,
                accuracy=share(kept == true, np.ones_like(true), every.image),
                true_kept=share(kept, true, every.image),
                wrong_dropped=share(~kept, ~true, every.image),
                run_kept=_run_kept(run, step, steps[step].promises),
                looks=len(looks[step]),
                left_out=left_out,
            )
        )
    Calibration(steps, looks).write(path)
    return found


def promises(
    every: Labelled, drawn: Labelled, wrongs: Iterable[float], confidence: float
) -> Iterable[Promise]:
    """For each share of wrong statements the loosest threshold that keeps it, where there is one.

    Which bound is used depends on the numbers of images and labels, not on what the labels say.

    Args:
        every: all labels.
        drawn: one of each image.
    """
    for wrong in wrongs:
        several = 2 * len(every.true) >= 3 * every.images and wrong * every.images >= MANY
        labels = every if several else drawn
        kept, kept_wrong = counts(labels.p_yes, labels.true)
        bound: Bound = "betting" if several else "binomial"
        if several:
            wealth = bet(*every, wrong)
            place = loosest_by_losses(wealth, every.images, confidence)
            needed = images_needed(wealth, confidence) if place is None else None
        else:
            place = loosest(kept, kept_wrong, most_wrong(len(drawn.true), wrong, confidence))
            needed = labels_needed(kept, kept_wrong, wrong, confidence) if place is None else None
        if place is None:
            yield Promise(wrong, None, images_needed=needed, bound=bound)
            continue
        true_kept = share(labels.p_yes >= THRESHOLDS[place], labels.true, labels.image)
        yield Promise(
            wrong=wrong,
            threshold=float(THRESHOLDS[place]),
            kept=int(kept[place]),
            kept_wrong=int(kept_wrong[place]),
            true_kept=(true_kept.mean, *true_kept.interval) if true_kept.of else None,
            bound=bound,
        )


def share(hits: np.ndarray, among: np.ndarray, image: np.ndarray) -> Share:
    """The share of hits among some of the statements, each (n,), `image` their images' numbers."""
    return Share(int((hits & among).sum()), int(among.sum()), len(np.unique(image[among])))


def reliability(labels: Labelled) -> Iterable[dict[str, Any]]:
    """The calibration plot's points (see `StepCalibration.reliability`)."""
    tenths = np.minimum((labels.p_yes * 10).astype(int), 9)
    for tenth in range(10):
        inside = (tenths == tenth) & (labels.p_yes >= 0)
        if inside.any():
            true = share(labels.true, inside, labels.image)
            yield {
                "x": float(labels.p_yes[inside].mean()),
                "y": [true.mean, *true.interval],
                "label": f"{true.of:,}",
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


def _left_out(run: Run) -> list[str]:
    found = []
    failed = [(row.get("row_id"), row["error"]) for row in run.rows() if row.get("error")]
    for row_id, error in failed[:SHOWN]:
        message = error.get("message") if isinstance(error, Mapping) else error
        found.append(f"row {row_id!r:.80} failed and has no part in it: {message!s:.300}")
    if len(failed) > SHOWN:
        found.append(f"and {len(failed) - SHOWN} rows more; captions.jsonl says why, in `error`")
    if run.status != "finished":
        found.append(f"the run is {run.status}: rows that are not done have no part in it")
    return found


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


def _digest(statements: Sequence[Statement], seed: int) -> str:
    """Of the labels, and of the draw among several of an image."""
    lines = sorted(f"{each.row_id}\n{each.text}\n{each.verdict}" for each in statements)
    if len({each.image for each in statements}) < len(statements):
        lines.append(f"seed {seed}")
    return hashlib.sha256("\n\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]
