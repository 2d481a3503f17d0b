"""Thresholds with a guarantee, from labelled statements of a run.

    scalecap calibrate RUN --labels labels.jsonl --wrong 0.05 --confidence 0.95

tells how good the run's checks are, and for each promise the loosest threshold that keeps it; writes
RUN/calibration.json, which `calibration=` of a run reads.
"""

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from scalecap.calibration.calibrate import Outcome, calibrate
from scalecap.calibration.record import NAME, CalibrationError, Promise, sentence
from scalecap.calibration.statistics import Share
from scalecap.config.settings import SettingsError
from scalecap.interpreter.binding import PipelineError
from scalecap.metrics.labels import LabelError, read_labels
from scalecap.run.folder import FolderError
from scalecap.run.journal import JournalError


def table(outcome: Outcome, wrong: float) -> Iterator[str]:
    """What was found of one check, for a terminal; the promise asked for is marked."""
    made, verdicts = outcome.calibration, outcome.verdicts
    unsure = f", {verdicts['unsure']} unsure (taken as no)" if verdicts["unsure"] else ""
    counted = f"{verdicts['yes']} yes, {verdicts['no']} no{unsure}"
    one_each = made.labels == made.images
    images = ", one an image" if one_each else f" of {made.images} images"
    yield f"{outcome.step}: {made.labels} labels{images}: {counted}"
    if made.given:
        yield "  the statements are the data's, so promises are about statements like those"
    yield from (f"  {each}" for each in outcome.left_out)
    yield (
        f"  at the run's threshold {outcome.threshold:g}: {_share(outcome.accuracy)} right,"
        f" {_share(outcome.true_kept)} of the true kept, {_share(outcome.wrong_dropped)} of the wrong dropped"
    )
    if not verdicts["no"] and not verdicts["unsure"]:
        yield (
            "  no statement is labelled no: if only the good ones were labelled, what follows promises"
            " nothing; label every statement that is drawn"
        )
    yield "  P(yes)  labels  true, with 95 % intervals"
    for point in made.reliability:
        mean, low, high = point["y"]
        yield f"    {point['x']:.2f}  {point['label']:>6}  {mean:.2f} ({low:.2f} to {high:.2f})"
    if not made.promises:
        yield "  These labels were drawn unsure first, so they are no random draw: nothing can be promised,"
        yield "  and the shares above are of statements that the check finds hard."
        return
    if outcome.looks > 1:
        yield (
            f"  This is calibration {outcome.looks} of this run, each with other labels: each look may find"
            f" a threshold by luck, so the confidence is {100 * made.confidence:g} %"
        )
    yield "  at most wrong  threshold   true kept               of all kept   labels kept, wrong"
    if not one_each:
        alone = [f"{each.wrong:g}" for each in made.promises if each.bound == "binomial"]
        others = [f"{each.wrong:g}" for each in made.promises if each.bound == "betting"]
        told = (
            [f"{', '.join(alone)} tested on one label an image, drawn at random (binomial bound)"]
            if alone
            else []
        )
        told += [f"{', '.join(others)} on all labels (betting bound)"] if others else []
        yield f"  ({'; '.join(told)})"
    for promise in made.promises:
        mark = "  <- asked for" if promise.wrong == wrong else ""
        yield f"  {promise.wrong:>13.3g}  {_promise(promise, outcome)}{mark}"


def _promise(promise: Promise, outcome: Outcome) -> str:
    if promise.threshold is None:
        made = outcome.calibration
        what = "labels" if made.labels == made.images else "labelled images"
        if promise.images_needed is None:
            return f"none: not even 10,000 {what} like these are likely to find one"
        return f"none: about {max(promise.images_needed - made.images, 1):,} more {what} may find one"
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
        prog="scalecap calibrate",
        description="Thresholds with a guarantee, from labelled statements.",
    )
    parser.add_argument("run", type=Path, help="folder of the run that was labelled")
    parser.add_argument(
        "--labels",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="label files of its report; without them, the labels that its data has (labels=…)",
    )
    parser.add_argument(
        "--wrong",
        type=_share_of_one,
        default=0.05,
        metavar="SHARE",
        help="the promise: at most this share wrong",
    )
    parser.add_argument("--confidence", type=_share_of_one, default=0.95, help="how sure the promise must be")
    parser.add_argument("--seed", type=int, default=0, help="of the draw among several labels of an image")
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
    path = arguments.run / NAME
    print(f"{path}  what was found; `scalecap report {shlex.quote(str(arguments.run))}` plots it")
    print(next_step(found, path, wrong))


def next_step(found: Sequence[Outcome], path: Path, wrong: float) -> str:
    """What to do with the calibration, and what is promised then."""
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
        return f"No threshold is shown to keep wrong={wrong:g}: label more, or promise less{hint}."
    later = {each.step: before for each in found if (before := _moved(each, thresholds))}
    now = [step for step in thresholds if step not in later]
    promise = f"wrong={wrong:g}"
    if len(now) < len(found):
        promise = shlex.quote(f"wrong={{{', '.join(f'{step}: {wrong:g}' for step in now)}}}")
    confidence = min(each.calibration.confidence for each in found if each.step in now)
    given = any(each.calibration.given for each in found)
    command = "a captioning run's command" if given else "the run's own command"
    lines = [
        f"Next: {command} with\n  calibration={shlex.quote(str(path))} {promise}",
        f"promises, with {100 * confidence:g} % confidence: {sentence(wrong, given=given)}",
    ]
    lines += [
        f"{step} is about what {' and '.join(before)} kept, which changes with that promise: label {step} in"
        " the report of the run with the promise, and give both label files there."
        for step, before in later.items()
    ]
    return "\n".join(lines)


def _moved(outcome: Outcome, thresholds: Mapping[str, float]) -> list[str]:
    """The checks before this one whose thresholds would not be those that it was labelled with."""
    steps = outcome.calibration.scope["steps"]
    return [
        step
        for step, threshold in thresholds.items()
        if step != outcome.step and step in steps and steps[step]["threshold"] != threshold
    ]


def _share_of_one(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0 and below 1, e.g. 0.05")
    return value


if __name__ == "__main__":
    main()
