"""Thresholds with a guarantee, from labelled statements of a run.

    scalecap calibrate RUN --labels labels.jsonl --wrong 0.05 --confidence 0.95

prints the accuracy of the run's checks and, for several error rates, the lowest threshold that guarantees it;
writes RUN/calibration.json, which `calibration=` of a run reads.
"""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from scalecap.calibration.calibrate import Outcome, calibrate
from scalecap.calibration.record import FILE_NAME, CalibrationError, Promise, promise_text, read_calibration
from scalecap.calibration.statistics import Share
from scalecap.config.compose import quoted
from scalecap.config.settings import SettingsError
from scalecap.interpreter.binding import PipelineError
from scalecap.metrics.labels import LabelError, read_labels
from scalecap.run.folder import FolderError
from scalecap.run.journal import JournalError


def table(outcome: Outcome, wrong: float) -> Iterator[str]:
    """The results for one check as lines of text; `wrong` is the promise to mark."""
    made, verdicts = outcome.calibration, outcome.verdicts
    unsure = f", {verdicts['unsure']} unsure (counted as no)" if verdicts["unsure"] else ""
    counted = f"{verdicts['yes']} yes, {verdicts['no']} no{unsure}"
    one_each = made.labels == made.images
    images = ", one per image" if one_each else f" of {made.images} images"
    yield f"{outcome.step}: {made.labels} labels{images}: {counted}"
    if made.given:
        yield "  the statements come from the data, so guarantees are about statements like these"
    yield from (f"  {each}" for each in outcome.left_out)
    yield (
        f"  at the run's threshold {outcome.threshold:g}: accuracy {_share(outcome.accuracy)},"
        f" true kept {_share(outcome.true_kept)}, wrong dropped {_share(outcome.wrong_dropped)}"
    )
    if not verdicts["no"] and not verdicts["unsure"]:
        yield (
            "  no statement is labelled no: if only good ones were labelled, the guarantees below are void;"
            " label every sampled statement"
        )
    yield "  P(yes)  labels  share true (95 % interval)"
    for point in made.reliability:
        mean, low, high = point["y"]
        yield f"    {point['x']:.2f}  {point['label']:>6}  {mean:.2f} ({low:.2f} to {high:.2f})"
    if not made.promises:
        yield "  Not a random sample (uncertain statements first): no guarantee is possible, and the rates"
        yield "  above are those of statements that are hard for the check."
        return
    if outcome.looks > 1:
        yield (
            f"  This is calibration {outcome.looks} of this run, with different labels each: multiple looks"
            f" lower the confidence to {100 * made.confidence:g} %"
        )
    yield "  at most wrong  threshold   true kept               of all kept   labels kept, wrong"
    if not one_each:
        alone = [f"{each.wrong:g}" for each in made.promises if each.bound == "binomial"]
        others = [f"{each.wrong:g}" for each in made.promises if each.bound == "betting"]
        bounds = (
            [f"{', '.join(alone)} tested on one random label per image (binomial bound)"] if alone else []
        )
        bounds += [f"{', '.join(others)} on all labels (betting bound)"] if others else []
        yield f"  ({'; '.join(bounds)})"
    for promise in made.promises:
        mark = "  <- requested" if promise.wrong == wrong else ""
        yield f"  {promise.wrong:>13.3g}  {_promise(promise, outcome)}{mark}"


def _promise(promise: Promise, outcome: Outcome) -> str:
    if promise.threshold is None:
        made = outcome.calibration
        what = "labels" if made.labels == made.images else "labelled images"
        if promise.images_needed is None:
            return f"none: 10,000 {what} like these would probably not suffice"
        return f"none: about {max(promise.images_needed - made.images, 1):,} more {what} may suffice"
    mean, low, high = promise.true_kept or (0.0, 0.0, 1.0)
    return (
        f"{promise.threshold:<10.4g}  {mean:.2f} ({low:.2f} to {high:.2f})"
        f"     {outcome.run_kept[promise.threshold].mean:>8.2f}      {promise.kept}, {promise.kept_wrong}"
    )


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.mean:.2f} ({low:.2f} to {high:.2f})" if share.of else "none"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scalecap calibrate", description="Thresholds with a guarantee, from labelled statements."
    )
    parser.add_argument("run", type=Path, help="folder of the run that was labelled")
    parser.add_argument(
        "--labels",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label files downloaded from its report (default: the labels of its data, see labels=…)",
    )
    parser.add_argument(
        "--wrong",
        type=_share_of_one,
        default=0.05,
        metavar="SHARE",
        help="guaranteed upper bound on the share of wrong statements among those kept",
    )
    parser.add_argument("--confidence", type=_share_of_one, default=0.95, help="confidence of the guarantee")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed for sampling one of several labels of an image"
    )
    arguments = parser.parse_args()
    wrong = arguments.wrong
    try:
        labels = None if arguments.labels is None else read_labels(arguments.labels)
        found = calibrate(
            arguments.run, labels, wrong=wrong, confidence=arguments.confidence, seed=arguments.seed
        )
    except (
        LabelError,
        CalibrationError,
        FolderError,
        JournalError,
        PipelineError,
        SettingsError,
        OSError,
    ) as error:
        parser.exit(1, f"error: {error}\n")
    for outcome in found:
        print("\n".join(table(outcome, wrong)))
    path = arguments.run / FILE_NAME
    print(f"{path}  the calibration; plot it with `scalecap report {shlex.quote(str(arguments.run))}`")
    print(next_step(found, path, wrong, len(read_calibration(path).steps)))


def next_step(found: Sequence[Outcome], path: Path, wrong: float, steps: int) -> str:
    """How to use the calibration, which is of so many `steps`, and what it guarantees."""
    thresholds = {
        each.step: made.threshold
        for each in found
        if (made := each.calibration.promise(wrong)) and made.threshold is not None
    }
    if not thresholds:
        kept = (
            each.wrong for one in found for each in one.calibration.promises if each.threshold is not None
        )
        less = min((each for each in kept if each > wrong), default=None)
        hint = f"; wrong={less:g} has a threshold" if less is not None else ""
        return f"No threshold guarantees wrong={wrong:g}: label more, or relax it{hint}."
    later = {each.step: before for each in found if (before := _moved(each, thresholds))}
    now = [step for step in thresholds if step not in later]
    promise = f"wrong={wrong:g}"
    if len(now) < steps:
        promise = shlex.quote(f"wrong={{{', '.join(f'{step}: {wrong:g}' for step in now)}}}")
    confidence = min(each.calibration.confidence for each in found if each.step in now)
    given = any(each.calibration.given for each in found)
    command = "a captioning run's command" if given else "the run's own command"
    lines = [
        f"Next: {command} with\n  {shlex.quote(f'calibration={quoted(str(path))}')} {promise}",
        f"guarantees with {100 * confidence:g} % confidence: {promise_text(wrong, given=given)}",
    ]
    lines += [
        f"{step} depends on what {' and '.join(before)} keeps, which this threshold changes: label {step} in"
        " the report of the new run, and calibrate that run with both label files."
        for step, before in later.items()
    ]
    return "\n".join(lines)


def _moved(outcome: Outcome, thresholds: Mapping[str, float]) -> list[str]:
    """Earlier checks whose thresholds would differ from those that this check was labelled with."""
    steps = outcome.calibration.scope["steps"]
    return [
        step
        for step, threshold in thresholds.items()
        if step != outcome.step and step in steps and steps[step]["threshold"] != threshold
    ]


def _share_of_one(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below 1, e.g. 0.05")


if __name__ == "__main__":
    main()
