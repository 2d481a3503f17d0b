"""Calibrates the checks of a run with its labels."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from scalecap.calibration.losses import betting_wealth, images_needed, loosest_threshold_by_betting
from scalecap.calibration.record import (
    FILE_NAME,
    Bound,
    Calibration,
    CalibrationError,
    Promise,
    StepCalibration,
    read_calibration,
)
from scalecap.calibration.scope import describe_data, identities, scope
from scalecap.calibration.statements import (
    LabelledArrays,
    Statement,
    data_statements,
    match_labels,
    one_per_image,
    p_yes_of,
    to_arrays,
)
from scalecap.calibration.statistics import (
    THRESHOLDS,
    Share,
    kept_counts,
    labels_needed,
    loosest_threshold,
    max_wrong_kept,
)
from scalecap.calibration.use import hand_edits
from scalecap.config.compose import from_config
from scalecap.config.settings import Settings
from scalecap.interpreter.pipeline import Pipeline
from scalecap.metrics.labels import Label
from scalecap.run.check import build_pipeline
from scalecap.run.folder import Run, checks
from scalecap.run.journal import Journal

DEFAULT_PROMISES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Values of `wrong` that are always tested, besides the requested one."""
MIN_EXPECTED_WRONG = 20
"""From this value of `wrong` times images on, the betting bound on all labels is tighter than the exact one
on one label per image."""
MAX_FAILED_LISTED = 3
"""Most failed rows that are listed."""
UNCERTAIN = "uncertain"
"""`draw` of labels that are not a random sample: the least certain statements first."""


@dataclass(frozen=True)
class Outcome:
    """The calibration of one check, with statistics to print."""

    step: str
    calibration: StepCalibration
    verdicts: Mapping[str, int]
    """Number of labels by verdict."""
    threshold: float
    """The threshold of the run."""
    accuracy: Share
    """Share of labelled statements classified correctly at this threshold."""
    true_kept: Share
    wrong_dropped: Share
    run_kept: Mapping[float, Share]
    """By threshold of a promise, the share of all the run's statements that it keeps."""
    looks: int
    left_out: Sequence[str]
    """Messages about rows without labelled statements."""


def calibrate(
    folder: Path, labels: Sequence[Label] | None, *, wrong: float, confidence: float, seed: int = 0
) -> list[Outcome]:
    """Calibrates each check of a run that has labels, and writes `calibration.json` into its folder.

    Args:
        labels: labels of any of the run's yes/no checks; None takes those of its data (`labels=`).
        wrong: the requested bound on the error rate; those in `DEFAULT_PROMISES` are tested too.
        confidence: confidence of each promise.
        seed: seed for sampling one of several labels of an image.

    Raises:
        LabelError: a label does not match the run.
        CalibrationError: a step can't be calibrated.
        JournalError: the folder has no run, or one that is in progress.
    """
    run = Run(folder, folder.resolve().name)
    settings, pipeline = _read_run(folder)
    path, check = folder / FILE_NAME, settings.labels.check
    fix = f"remove {path} and calibrate again"
    before = read_calibration(path, fix) if path.exists() else Calibration({}, {})
    if labels is not None:
        labelled = match_labels(labels, run)
    elif check is not None:
        labelled = {check: data_statements(run, check)}
    else:
        raise CalibrationError(
            f"the data of {folder} has no labels; pass those of its report as --labels labels.jsonl, or run"
            " with labels=… (conf/labels)"
        )
    edited = Counter(
        step for row in run.rows() for step, flags in (row.get("flags") or {}).items() if "edited" in flags
    )
    left_out = _left_out(run)
    found, steps, looks = [], dict(before.steps), dict(before.looks)
    for step, statements in labelled.items():
        threshold = _threshold(pipeline, step)
        if edits := hand_edits(pipeline, step, check is not None, edited):
            raise CalibrationError(
                f"{folder}: {edits}, so that not all statements come from the pipeline; label a run without"
                " edits= in another output= (its requests are cached)"
            )
        looks[step] = list(dict.fromkeys([*looks.get(step, []), _digest(statements, seed)]))
        uncertain = any(label.step == step and label.draw == UNCERTAIN for label in labels or ())
        final_confidence = 0.0 if uncertain else max(0.0, 1 - (1 - confidence) * len(looks[step]))
        every, given = to_arrays(statements), check is not None
        drawn = to_arrays(one_per_image(statements, seed))
        wrongs = [] if uncertain else sorted({*DEFAULT_PROMISES, wrong})
        steps[step] = StepCalibration(
            labels=len(statements),
            images=every.images,
            given=given,
            source=describe_data(settings),
            confidence=round(final_confidence, 6),
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
    every: LabelledArrays, drawn: LabelledArrays, wrongs: Iterable[float], confidence: float
) -> Iterable[Promise]:
    """The lowest threshold that guarantees each value of `wrongs`, if there is one.

    The bound is chosen by the numbers of images and labels alone, not by the verdicts.

    Args:
        every: all labels.
        drawn: one label of each image.
    """
    for wrong in wrongs:
        several = 2 * len(every.true) >= 3 * every.images and wrong * every.images >= MIN_EXPECTED_WRONG
        labels = every if several else drawn
        kept, kept_wrong = kept_counts(labels.p_yes, labels.true)
        bound: Bound = "betting" if several else "binomial"
        if several:
            wealth = betting_wealth(*every, wrong)
            place = loosest_threshold_by_betting(wealth, every.images, confidence)
            needed = images_needed(wealth, confidence) if place is None else None
        else:
            place = loosest_threshold(kept, kept_wrong, max_wrong_kept(len(drawn.true), wrong, confidence))
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
    """The share of `hits` in `among`, both masks (n,) over statements; `image` (n,) has their images' ids."""
    return Share(int((hits & among).sum()), int(among.sum()), len(np.unique(image[among])))


def reliability(labels: LabelledArrays) -> Iterable[dict[str, Any]]:
    """The points of the reliability diagram (see `StepCalibration.reliability`)."""
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
                f"{folder} has rows of several configs (resume=force); label a run with a single one"
            )
        config = {name: value for name, value in journal.config.items() if name != "code"}
    settings = from_config(OmegaConf.create(config | {"output": str(folder)}))
    return settings, build_pipeline(settings, None)


def _threshold(pipeline: Pipeline, step: str) -> float:
    """The step's threshold. Raises CalibrationError if it has none on P(yes)."""
    found = next(each for each in pipeline.steps if each.name == step)
    if found.stage.name != "verify" or found.settings["mode"] != "choose":
        raise CalibrationError(
            f"can't calibrate {step}: it has no threshold on P(yes) (stage {found.stage.name}); label a step"
            " with `stage: verify` and `mode: choose`"
        )
    if found.adds_to and found.rounds > 1:
        raise CalibrationError(
            f"can't calibrate {step}: what it keeps decides what its later rounds ask, so that another"
            f" threshold would change the statements; label a run with pipeline.steps.{step}.rounds=1"
        )
    return float(found.settings["threshold"])


def _left_out(run: Run) -> list[str]:
    found = []
    failed = [(row.get("row_id"), row["error"]) for row in run.rows() if row.get("error")]
    for row_id, error in failed[:MAX_FAILED_LISTED]:
        message = error.get("message") if isinstance(error, Mapping) else error
        found.append(f"row {row_id!r:.80} failed and is excluded: {message!s:.300}")
    if len(failed) > MAX_FAILED_LISTED:
        found.append(f"and {len(failed) - MAX_FAILED_LISTED} more rows; see `error` in captions.jsonl")
    if run.status != "finished":
        found.append(f"the run is {run.status}: unfinished rows are excluded")
    return found


def _run_kept(run: Run, step: str, promises: Sequence[Promise]) -> dict[float, Share]:
    """The share of all the run's statements that each promise's threshold keeps."""
    p_yes = [p_yes_of(score) for row in run.rows() for score in dict(checks(row)).get(step, [])]
    values = np.array(p_yes, float)
    thresholds = [each.threshold for each in promises if each.threshold is not None]
    return {each: Share(int((values >= each).sum()), len(values)) for each in thresholds}


def _digest(statements: Sequence[Statement], seed: int) -> str:
    """A digest of the labels, and of the seed if one of several labels of an image is sampled."""
    lines = sorted(f"{each.row_id}\n{each.text}\n{each.verdict}" for each in statements)
    if len({each.image for each in statements}) < len(statements):
        lines.append(f"seed {seed}")
    return hashlib.sha256("\n\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:12]
