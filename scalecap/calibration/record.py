"""`calibration.json`: by step, the threshold of each promise and the scope in which it holds."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

FORMAT = 3
FILE_NAME = "calibration.json"


Bound = Literal["binomial", "betting"]
"""The test: exact binomial on one label per image (`statistics`), or betting on all labels (`losses`)."""


class CalibrationError(Exception):
    """A promise can't be made or does not apply; the message says why and how to fix it."""


@dataclass(frozen=True)
class Promise:
    """A guaranteed bound on the error rate, with the lowest threshold that guarantees it."""

    wrong: float
    """Upper bound on the probability that a kept statement of a random image is wrong."""
    threshold: float | None
    """None if no threshold passed the test."""
    kept: int = 0
    """Labelled statements at or above the threshold."""
    kept_wrong: int = 0
    """Wrong ones among them."""
    true_kept: tuple[float, float, float] | None = None
    """Share of true statements kept, with the bounds of its exact 95 % interval."""
    images_needed: int | None = None
    """Without a threshold: estimated number of labelled images that would suffice; None if over 10,000."""
    bound: Bound = "binomial"


def promise_text(wrong: float, *, given: bool = False) -> str:
    """The promise as a sentence; `given` if the data had the labelled statements."""
    like = "images and statements" if given else "images"
    return (
        "a kept statement, drawn at random from a random image, is wrong with a probability of at most"
        f" {100 * wrong:g} %, for {like} like those labelled"
    )


@dataclass(frozen=True)
class StepCalibration:
    """The calibration of one check."""

    labels: int
    """Number of labelled statements."""
    images: int
    """Number of images that they are about."""
    given: bool
    """Whether the data had the labelled statements (`labels=`), so that earlier steps do not matter."""
    source: str
    """Description of the labelled images' source."""
    confidence: float
    """Confidence of each promise, corrected for earlier calibrations of the run with other labels."""
    scope: Mapping[str, Any]
    """What the statements and their P(yes) depend on (`scalecap.calibration.scope`)."""
    identities: Mapping[str, str]
    """By role, the identity of the model."""
    reliability: tuple[Mapping[str, Any], ...]
    """Reliability diagram: for each tenth of P(yes) with labels, mean P(yes) `x`, share of true statements
    with its exact 95 % interval `y`, and the number of labels `label`."""
    promises: tuple[Promise, ...]

    def promise(self, wrong: float) -> Promise | None:
        return next((each for each in self.promises if abs(each.wrong - wrong) < 1e-9), None)


@dataclass(frozen=True)
class Calibration:
    """The content of the file."""

    steps: Mapping[str, StepCalibration]
    looks: Mapping[str, list[str]]
    """By step, digests of the label sets that this run was calibrated with, in order."""

    def write(self, path: Path) -> None:
        steps = {name: asdict(step) for name, step in self.steps.items()}
        content = json.loads(json.dumps({"format": FORMAT, "steps": steps, "looks": self.looks}))
        part = path.with_name(f"{path.name}.part")
        text = json.dumps({**content, "digest": _digest(content)}, indent=2, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, path)


def read_calibration(
    path: Path, fix: str = "create it with `scalecap calibrate RUN --labels labels.jsonl`"
) -> Calibration:
    """Reads a calibration. Raises CalibrationError if the file is missing, invalid, or was edited."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"can't read calibration={path}: {error.strerror}; {fix}") from error
    except ValueError as error:
        raise CalibrationError(f"calibration={path} is not JSON ({error}); {fix}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CalibrationError(f"{path} is not a calibration file of this version of scalecap; {fix}")
    if content.pop("digest", None) != _digest(content):
        raise CalibrationError(f"{path} was edited after it was created, so it guarantees nothing; {fix}")
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
