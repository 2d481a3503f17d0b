"""`calibration.json`: by step, which threshold keeps which promise, and what the labels depended on."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

FORMAT = 2
NAME = "calibration.json"


Bound = Literal["binomial", "betting"]
"""What a threshold was tested by: `statistics`, one label an image; or `losses`, all labels of each."""


class CalibrationError(Exception):
    """No promise can be made or kept; the message says why and what to do."""


@dataclass(frozen=True)
class Promise:
    """What a threshold was found to keep."""

    wrong: float
    """The most that is promised: the probability that a kept statement of a random picture is wrong."""
    threshold: float | None
    """The loosest that keeps it; None when no threshold can be shown to."""
    kept: int = 0
    """Labelled statements that it keeps, and how many of them are wrong."""
    kept_wrong: int = 0
    true_kept: tuple[float, float, float] | None = None
    """Share of the true statements that it keeps, with its exact 95 % interval."""
    images_needed: int | None = None
    """Where there is no threshold: about how many labelled images may find one; None when none may."""
    bound: Bound = "binomial"


def sentence(wrong: float, *, given: bool = False) -> str:
    """The promise in plain words; of `given` statements the data had the labels."""
    like = "pictures and statements" if given else "pictures"
    return (
        "a statement that is kept, drawn at random from a picture drawn at random, is wrong with a"
        f" probability of at most {100 * wrong:g} %, on {like} like those labelled"
    )


@dataclass(frozen=True)
class StepCalibration:
    """One check, calibrated."""

    labels: int
    """Labelled statements."""
    images: int
    """Images that they are of."""
    given: bool
    """Whether the data had the statements with their labels (`labels=`), so that no step before the check
    counts; else they are the pipeline's own."""
    pictures: str
    """Where the labelled pictures came from, for reading."""
    confidence: float
    """Of each promise, earlier looks at the run's labels accounted for."""
    scope: Mapping[str, Any]
    """What the statements depend on (`scalecap.calibration.scope`)."""
    identities: Mapping[str, str]
    reliability: tuple[Mapping[str, Any], ...]
    """For each tenth of P(yes) that has labels: their mean P(yes) `x`, the share that is true with its exact
    95 % interval `y`, and their number `label`."""
    promises: tuple[Promise, ...]

    def promise(self, wrong: float) -> Promise | None:
        return next((each for each in self.promises if abs(each.wrong - wrong) < 1e-9), None)


@dataclass(frozen=True)
class Calibration:
    """The file's content."""

    steps: Mapping[str, StepCalibration]
    looks: Mapping[str, list[str]]
    """By step, a digest of the labels of each calibration of this run, in the order they were made."""

    def write(self, path: Path) -> None:
        steps = {name: asdict(step) for name, step in self.steps.items()}
        content = json.loads(json.dumps({"format": FORMAT, "steps": steps, "looks": self.looks}))
        part = path.with_name(f"{path.name}.part")
        text = json.dumps({**content, "digest": _digest(content)}, indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)


def read_calibration(path: Path) -> Calibration:
    """Raises CalibrationError when the file is not there, not a calibration, or was changed by hand."""
    again = "make it with `scalecap calibrate RUN --labels labels.jsonl`"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"can't read calibration={path}: {error.strerror}; {again}") from error
    except ValueError as error:
        raise CalibrationError(f"calibration={path} is not JSON ({error}); {again}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CalibrationError(f"{path} is no calibration of this version of scalecap; {again}")
    if content.pop("digest", None) != _digest(content):
        raise CalibrationError(f"{path} was changed after it was made, so it promises nothing; {again}")
    return Calibration(
        {name: _step(step) for name, step in content["steps"].items()},
        {name: list(looks) for name, looks in content["looks"].items()},
    )


def _step(step: Mapping[str, Any]) -> StepCalibration:
    promises = tuple(
        Promise(**{**each, "true_kept": each["true_kept"] and tuple(each["true_kept"])})
        for each in step["promises"]
    )
    return StepCalibration(**{**step, "reliability": tuple(step["reliability"]), "promises": promises})


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
