"""From a run and its labels to calibration.json, by the command."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from labelled import labels_of, write_labels
from runs import Command, Compose, Rows, captions

from scalecap.calibration.calibrate import calibrate as calibrate_run
from scalecap.calibration.record import CalibrationError, read_calibration
from scalecap.metrics.labels import read_labels
from scalecap.runner import run

Calibrate = Callable[..., int]


@pytest.fixture
def calibrate(command: Command, made: Path, tmp_path: Path) -> Calibrate:
    """Runs `scalecap calibrate RUN --labels FILE …` on these labels; the exit code."""

    def typed(labels: list[dict], *words: str) -> int:
        path = write_labels(tmp_path / "labels.jsonl", labels)
        return command("calibrate", made, "--labels", path, *words)

    return typed


def test_a_promise_from_labels(made: Path, calibrate: Calibrate, capsys: pytest.CaptureFixture):
    assert calibrate(labels_of(made, "golden_sentences"), "--wrong", "0.1") == 0
    output = capsys.readouterr().out
    assert "golden_sentences: 120 labels, one per image: 60 yes, 60 no" in output
    # Dogs get 0.6 to 0.961, cats 0.11 to 0.59: 12 of 60 cats are kept at 0.5.
    assert "at the run's threshold 0.5: accuracy 0.90 (0.83 to 0.95), true kept 1.00 (0.94 to 1.00)" in output
    assert "wrong dropped 0.80 (0.68 to 0.89)" in output
    made_file = read_calibration(made / "calibration.json")
    step = made_file.steps["golden_sentences"]
    promise = step.promise(0.1)
    assert promise is not None
    assert promise.threshold is not None
    assert 0.5 < promise.threshold < 0.6
    assert promise.kept_wrong <= 1
    assert f"calibration={made / 'calibration.json'} wrong=0.1" in output
    none = step.promise(0.01)
    assert none is not None
    assert none.threshold is None
    assert "more labels may suffice" in output
    assert step.identities == {"vlm": "scripted"}
    assert set(step.scope["steps"]) == {"init_caption", "sentences", "golden_sentences"}
    assert "threshold" not in step.scope["steps"]["golden_sentences"]
    assert step.reliability[0]["label"] == "12"


def test_labels_that_promise_nothing_say_so(made: Path, calibrate: Calibrate, capsys: pytest.CaptureFixture):
    labels = labels_of(made, "golden_sentences")
    assert calibrate(labels[:20]) == 0
    assert "No threshold guarantees wrong=0.05: label more, or relax it." in capsys.readouterr().out
    assert calibrate([label for label in labels if label["verdict"] == "yes"]) == 0
    assert "no statement is labelled no: if only good ones were labelled" in capsys.readouterr().out
    assert calibrate([label | {"draw": "uncertain"} for label in labels]) == 0
    assert (
        "Not a random sample (uncertain statements first): no guarantee is possible"
        in capsys.readouterr().out
    )
    assert not read_calibration(made / "calibration.json").steps["golden_sentences"].promises


def test_calibrating_again_with_more_labels_costs_confidence(
    made: Path, calibrate: Calibrate, capsys: pytest.CaptureFixture
):
    labels = labels_of(made, "golden_sentences")
    for given in (labels[:60], labels[:60], labels):
        assert calibrate(given, "--wrong", "0.2") == 0
    assert "This is calibration 2 of this run, with different labels each" in capsys.readouterr().out
    assert read_calibration(made / "calibration.json").steps["golden_sentences"].confidence == 0.9


def test_each_check_has_its_own_calibration(made: Path, calibrate: Calibrate, capsys: pytest.CaptureFixture):
    assert calibrate(labels_of(made, "golden_sentences")) == 0
    assert calibrate(labels_of(made, "final_details"), "--wrong", "0.1") == 0
    assert "calibration.json 'wrong={final_details: 0.1}'" in capsys.readouterr().out
    steps = read_calibration(made / "calibration.json").steps
    assert set(steps) == {"golden_sentences", "final_details"}
    assert steps["final_details"].scope["steps"]["golden_sentences"]["threshold"] == 0.5


LOOP = (
    "pipeline.steps={init_caption: {stage: generate, prompt: Caption., image: image},"
    " known: {stage: split_sentences, text: init_caption},"
    " missed: {stage: generate, prompt: 'Not: {{ known }}', image: image, variables: {known: known},"
    " parse: sentences}, new: {stage: deduplicate, texts: missed, known: known},"
    " golden: {stage: verify, texts: new, prompt: 'True: {{ text }}', adds_to: known, rounds: ROUNDS}}"
)


@pytest.mark.parametrize(("rounds", "refused"), [(2, True), (1, False)])
def test_a_check_that_decides_what_is_asked_next_promises_nothing(
    compose: Compose,
    rows: Rows,
    engines: Any,
    tmp_path: Path,
    rounds: int,
    refused: bool,
):
    steps = LOOP.replace("ROUNDS", str(rounds))
    settings = compose("data=jsonl", rows(4), steps, "cache=off", "pipeline=none", "report=false")
    run(settings, engines=engines, command="python -m scalecap data=jsonl")
    path = write_labels(tmp_path / "labels.jsonl", labels_of(tmp_path / "run", "golden"))
    with pytest.raises(CalibrationError, match="rounds=1") if refused else nullcontext():
        calibrate_run(tmp_path / "run", read_labels([path]), wrong=0.1, confidence=0.95)


def test_errors_are_one_line(made: Path, calibrate: Calibrate, capsys: pytest.CaptureFixture):
    labels = labels_of(made, "golden_sentences")
    assert calibrate([labels[0] | {"verdict": "maybe"}]) == 1
    assert "unknown verdict 'maybe'" in capsys.readouterr().err
    assert calibrate(labels, "--wrong", "5") == 2
    assert "5: must be above 0 and below 1" in capsys.readouterr().err
    assert calibrate(labels, "--wrong", "5%") == 2
    assert "5%: must be above 0 and below 1" in capsys.readouterr().err
    rows = captions(made)
    for row in rows:
        del row["row_id"]
    (made / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert calibrate(labels) == 1
    assert "captions.jsonl has no row_id" in capsys.readouterr().err


def test_a_calibration_changed_by_hand_is_refused(
    made: Path, calibrate: Calibrate, tmp_path: Path, capsys: pytest.CaptureFixture
):
    labels = labels_of(made, "golden_sentences")
    assert calibrate(labels, "--wrong", "0.1") == 0
    path = made / "calibration.json"
    path.write_text(path.read_text().replace('"kept_wrong": 0', '"kept_wrong": -1'))
    assert calibrate(labels) == 1
    assert f"remove {path} and calibrate again" in capsys.readouterr().err
    with pytest.raises(CalibrationError, match="was edited after it was created"):
        read_calibration(path)
    with pytest.raises(CalibrationError, match="can't read calibration="):
        read_calibration(tmp_path / "none.json")
    path.write_text("{}")
    with pytest.raises(CalibrationError, match="is not a calibration file of this version"):
        read_calibration(path)
    path.write_text("nothing")
    with pytest.raises(CalibrationError, match="is not JSON"):
        read_calibration(path)
