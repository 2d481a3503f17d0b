"""A calibration used by a run: its thresholds, how it is reported, and when it is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labelled import STEPS, labels_of, write_labels
from PIL import Image as Pillow
from runs import Compose, Rows, roles

from scalecap import Captioner
from scalecap.calibration.calibrate import calibrate
from scalecap.calibration.record import CalibrationError
from scalecap.config.settings import SettingsError
from scalecap.engines.base import Choose
from scalecap.engines.scripted import Scripted
from scalecap.metrics.labels import read_labels
from scalecap.report.card import card
from scalecap.report.run_page import write_report
from scalecap.run.folder import Run
from scalecap.run.summary import Summary
from scalecap.runner import RunError, plan, run

Again = Callable[..., Summary]


@pytest.fixture
def calibration(made: Path, tmp_path: Path) -> str:
    """The override that names the calibration of both checks."""
    labels = labels_of(made, "golden_sentences") + labels_of(made, "final_details")
    path = write_labels(tmp_path / "labels.jsonl", labels)
    calibrate(made, read_labels([path]), wrong=0.1, confidence=0.95)
    return f"calibration={made / 'calibration.json'}"


@pytest.fixture
def again(compose: Compose, engines: dict[str, Scripted], tmp_path: Path) -> Again:
    """Runs once more, with these overrides."""

    def again(*overrides: str, engines: Any = engines, steps: str = STEPS) -> Summary:
        path = f"data.path={tmp_path}/rows.jsonl"
        fixed = ("data=jsonl", path, steps, "pipeline=none", "report=false", f"output={tmp_path / 'again'}")
        settings = compose(*fixed, "cache=off", *overrides)
        return run(settings, engines=engines, command="a b c d")

    return again


def test_a_promise_sets_the_threshold_and_is_reported(calibration: str, again: Again, tmp_path: Path):
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    by_hand = before["promises"]["golden_sentences"]
    assert by_hand == {
        "threshold": 0.5,
        "wrong": None,
        "sentence": "threshold 0.5 set by hand: no guarantee",
    }
    summary = again(calibration, "wrong={golden_sentences: 0.1}")
    assert before["checks"]["golden_sentences"] == {"kept": 144, "dropped": 96}
    assert (summary.kept["golden_sentences"], summary.dropped["golden_sentences"]) == (120, 120)
    promise = (
        "guaranteed with 95 % confidence: a kept statement, drawn at random from a random image, is wrong"
        " with a probability of at most 10 %, for images like those labelled"
        " (120 labels, one per image, binomial bound; data=jsonl"
    )
    assert f"golden_sentences: 120 kept, 120 dropped; {promise}" in summary.screen()
    assert "final_details: 120 kept, 0 dropped; threshold 0.5 set by hand" in summary.screen()
    made = Run(tmp_path / "again", "again")
    assert made.promises["golden_sentences"]["wrong"] == 0.1
    assert made.steps["golden_sentences"]["threshold"] == pytest.approx(0.5987, abs=1e-4)
    page = write_report(made.folder).read_text()
    assert "is wrong with a probability of at most 10 %" in page
    assert "final_details: threshold 0.5 set by hand" in page


def test_the_card_states_the_promise(calibration: str, again: Again, tmp_path: Path):
    import pyarrow.parquet as pq

    again(calibration, "wrong={golden_sentences: 0.1}")
    folder = tmp_path / "again"
    (shard,) = (folder / "dataset").glob("*.parquet")
    text = str(card(Run(folder, "again"), "me/photos", "cc0-1.0", pq.read_schema(shard)))
    assert "- `golden_sentences`: guaranteed with 95 % confidence" in text
    assert "- `final_details`: threshold 0.5 set by hand: no guarantee." in text


@pytest.mark.parametrize(
    ("otherwise", "noted"), [("initial: init_caption", True), ("fallback: empty", False)]
)
def test_captions_that_no_check_passed_are_noted(calibration: str, again: Again, otherwise: str, noted: bool):
    fuse = (
        ", final_caption: {stage: fuse, prompt: '{{ context }}{{ object_info }}{{ position_info }}', context:"
        f" golden_sentences, object_info: final_details, position_info: final_details, {otherwise}}}}}"
    )
    never = roles(lambda request: 0.3 if isinstance(request, Choose) else "There is a dog.")
    promise = (calibration, "wrong={golden_sentences: 0.1}", "data.limit=3")
    screen = again(*promise, engines=never, steps=STEPS[:-1] + fuse).screen()
    assert "final_caption: 3 fallback" in screen
    note = (
        "final_caption: 3 rows fell back: where no sentence passed, the caption is the initial one, unchecked"
    )
    assert (note in screen) == noted


def test_a_promise_for_all_checks_needs_labels_of_what_runs(calibration: str, again: Again):
    # The details were labelled with sentences kept from 0.5 on; the promise keeps fewer, so they differ.
    with pytest.raises(RunError) as error:
        again(calibration, "wrong=0.1")
    assert "does not apply to this run's final_details" in str(error.value)
    assert "steps.golden_sentences.threshold: was 0.5, is 0.59" in str(error.value)


def test_both_checks_are_promised_after_a_second_round_of_labels(
    made: Path, calibration: str, again: Again, tmp_path: Path
):
    again(calibration, "wrong={golden_sentences: 0.1}")
    second = tmp_path / "again"
    labels = labels_of(made, "golden_sentences") + labels_of(second, "final_details")
    path = write_labels(tmp_path / "both.jsonl", labels)
    calibrate(second, read_labels([path]), wrong=0.1, confidence=0.95)
    summary = again(f"calibration={second / 'calibration.json'}", "wrong=0.1", f"output={tmp_path / 'third'}")
    assert {step: each["wrong"] for step, each in summary.promises.items()} == {
        "golden_sentences": 0.1,
        "final_details": 0.1,
    }


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (STEPS.replace("'True: {{ text }}'}, raw", "'Is it so: {{ text }}'}, raw"), "prompt: was True"),
        (STEPS.replace("Caption.", "'Say all.'"), "steps.init_caption.prompt: was Caption., is Say all."),
    ],
)
def test_another_step_is_refused(
    calibration: str, again: Again, changed: str, difference: str, tmp_path: Path
):
    assert changed != STEPS
    with pytest.raises(RunError) as error:
        again(calibration, "wrong={golden_sentences: 0.1}", steps=changed)
    assert "the labelled run differs" in str(error.value)
    assert difference in str(error.value)
    assert not (tmp_path / "again").exists()  # before the folder is created, or a model loaded


def test_another_sampling_or_model_is_refused(calibration: str, again: Again):
    with pytest.raises(RunError, match=r"sampling.temperature: was 0.7, is 0.2"):
        again(calibration, "wrong={golden_sentences: 0.1}", "sampling.temperature=0.2")
    with pytest.raises(RunError, match=r"models.vlm.max_pixels: was None, is 10000"):
        again(calibration, "wrong={golden_sentences: 0.1}", "model.vlm.max_pixels=10000")
    with pytest.raises(RunError, match=r"budget: was None, is 5"):
        again(calibration, "wrong={golden_sentences: 0.1}", "pipeline.budget=5")
    with pytest.raises(RunError, match=r"golden_sentences.limit: was None, is 1"):
        again(calibration, "wrong={golden_sentences: 0.1}", "+pipeline.steps.golden_sentences.limit=1")
    other = roles(lambda request: 0.9, identity="another")
    with pytest.raises(RunError, match=r"vlm: was scripted, is another"):
        again(calibration, "wrong={golden_sentences: 0.1}", engines=other)


@pytest.mark.parametrize(
    ("draw", "looks", "message"),
    [
        ("uncertain", 1, "guarantees nothing about golden_sentences: its labels are not a random sample"),
        ("random", 3, "the run was calibrated too often with different labels"),
    ],
)
def test_a_calibration_without_a_promise_is_refused(
    made: Path, again: Again, tmp_path: Path, draw: str, looks: int, message: str
):
    labels = labels_of(made, "golden_sentences", draw=draw)
    for look in range(looks):
        path = write_labels(tmp_path / "labels.jsonl", labels[: len(labels) - look])
        calibrate(made, read_labels([path]), wrong=0.2, confidence=0.6)
    with pytest.raises(RunError, match=message):
        again(f"calibration={made / 'calibration.json'}", "wrong=0.2")


def test_a_captioner_keeps_the_promise_too(calibration: str, opened: list[Any]):
    unsure = Pillow.new("RGB", (30, 30), (8, 0, 0))  # P(yes) of its cat is 0.53
    with Captioner(None, "pipeline=none", STEPS, progress=False, cache="off") as captioner:
        assert captioner(unsure)["golden_sentences"] == ["There is a dog.", "There is a cat."]
    promise = (calibration, "wrong={golden_sentences: 0.1}")
    with Captioner(None, "pipeline=none", STEPS, *promise, progress=False, cache="off") as captioner:
        assert captioner(unsure)["golden_sentences"] == ["There is a dog."]
    with pytest.raises(RunError, match=r"sampling.temperature"):
        Captioner(None, "pipeline=none", STEPS, *promise, "sampling.temperature=0.2")


def test_changes_that_do_not_matter_are_not_refused(calibration: str, again: Again):
    promise = (calibration, "wrong={golden_sentences: 0.1}")
    summary = again(*promise, "seed=7", "data.limit=30", "engine.batch_size=2")
    assert summary.promises["golden_sentences"]["wrong"] == 0.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["wrong=0.07"],
            "was not created with --wrong 0.07 for golden_sentences; available: 0.05, 0.1",
        ),
        (["wrong=0.01"], "has no threshold for it with its 120 labels for golden_sentences"),
        (["wrong={golden_sentence: 0.1}"], "has no step 'golden_sentence'; did you mean 'golden_sentences'"),
        (
            ["~pipeline.steps.final_details", "wrong=0.1"],
            "the step final_details, which this pipeline does not",
        ),
    ],
)
def test_a_promise_that_was_not_made(calibration: str, again: Again, overrides: list[str], message: str):
    with pytest.raises(RunError) as error:
        again(calibration, *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["wrong=0.05"], "calibration=FILE and wrong=SHARE must be given together"),
        (["calibration=c.json"], "calibration=FILE and wrong=SHARE must be given together"),
        (["calibration=c.json", "wrong=5"], "wrong=5: must be above 0 and below 1"),
        (["calibration=c.json", "wrong={a: much}"], "wrong={a: much}: must be above 0 and below 1"),
    ],
)
def test_values_are_checked(compose: Compose, overrides: list[str], message: str):
    with pytest.raises(SettingsError) as error:
        compose(*overrides)
    assert message in str(error.value)


def test_a_missing_file_is_found_by_check_true(compose: Compose, rows: Rows):
    settings = compose("data=jsonl", rows(3), "calibration=none.json", "wrong=0.05")
    with pytest.raises(RunError, match=r"can't read calibration=none.json: No such file"):
        plan(settings)


def test_rows_of_other_thresholds_void_the_promise(calibration: str, again: Again):
    again("data.limit=10")
    summary: Any = again(calibration, "wrong={golden_sentences: 0.1}", "resume=force")
    assert summary.promises["golden_sentences"]["wrong"] is None
    assert "no guarantee" in summary.screen()


def edited(folder: Path, path: Path, **columns: Any) -> str:
    """The override that edits the first row."""
    path.write_text(json.dumps({"row_id": "0", **columns}) + "\n")
    return f"edits={path}"


def test_rows_edited_by_hand_void_the_promise_of_the_checks_that_they_reach(
    calibration: str, again: Again, tmp_path: Path
):
    promise = (calibration, "wrong={golden_sentences: 0.1}")
    after = edited(tmp_path, tmp_path / "after.jsonl", raw_answers=["It is a red dog."])
    summary = again(*promise, after)
    assert summary.promises["golden_sentences"]["wrong"] == 0.1  # which comes before what was edited
    before = edited(tmp_path, tmp_path / "before.jsonl", sentences=["There is a dog."])
    summary = again(*promise, before)
    assert summary.promises["golden_sentences"] == {
        "threshold": pytest.approx(0.5987, abs=1e-4),
        "wrong": None,
        "sentence": "1 row edited by hand at sentences: no guarantee",
    }
    assert "no guarantee" in again(*promise).screen()  # the folder still has the edited rows


def test_edited_statements_are_not_calibrated(made: Path, again: Again, tmp_path: Path):
    again(edited(tmp_path, tmp_path / "edits.jsonl", golden_sentences=["There is a dog."]))
    folder = tmp_path / "again"
    path = write_labels(tmp_path / "labels.jsonl", labels_of(folder, "golden_sentences"))
    with pytest.raises(CalibrationError) as error:
        calibrate(folder, read_labels([path]), wrong=0.1, confidence=0.95)
    assert "1 row edited by hand at golden_sentences" in str(error.value)


def test_a_run_over_other_images_says_whose_labels_they_are(calibration: str, again: Again, tmp_path: Path):
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "rows.jsonl").read_text())
    note = "golden_sentences: labels are of images from data=jsonl"
    promise = (calibration, "wrong={golden_sentences: 0.1}", "data.limit=3")
    assert not any(each.startswith(note) for each in again(*promise).notes)
    (message,) = (
        each
        for each in again(*promise, f"data.path={other}", f"output={tmp_path}/other").notes
        if each.startswith(note)
    )
    assert message.endswith("the guarantee holds if this run's images come from the same distribution.")
