import json

import numpy as np
import pytest

from scalecap.engines.base import Chosen
from scalecap.metrics.verifier import Verifier, quality
from scalecap.text.templates import Template

PROMPT = Template("{{ text }}")


async def test_statements_are_judged_by_their_labels(recording_client, image):
    p = {"a": 0.9, "b": 0.4, "c": 0.6, "d": 0.1}
    recorder = recording_client(lambda request: p[request.prompt.text])
    statements = [
        {"text": t, "label": label} for t, label in zip("abcd", ["yes", 1, False, "No"], strict=True)
    ]
    measured, answers = await Verifier(prompt=PROMPT)(recorder.client, image=image, statements=statements)
    assert measured == {
        "accuracy": {"count": 2, "of": 4},
        "true_accepted": {"count": 1, "of": 2},
        "false_refused": {"count": 1, "of": 2},
        "unanswered": {"count": 0, "of": 4},
    }
    assert [each["p_yes"] for each in answers] == list(p.values())
    assert [each["label"] for each in answers] == [True, True, False, False]


async def test_a_statement_without_an_answer_is_wrong_and_has_no_probability(recording_client, image):
    masses = {"a": 0.9, "b": 0.01, "c": 0.9, "d": 0.01}
    recorder = recording_client(
        lambda r: Chosen((0.8, 0.2) if r.prompt.text < "c" else (0.2, 0.8), masses[r.prompt.text]), 0.1
    )
    statements = [{"text": t, "label": label} for t, label in zip("abcd", [1, 1, 0, 0], strict=True)]
    measured, answers = await Verifier(prompt=PROMPT)(recorder.client, image=image, statements=statements)
    assert measured["accuracy"] == {"count": 2, "of": 4}
    assert measured["unanswered"] == {"count": 2, "of": 4}
    assert [each["p_yes"] for each in answers] == [0.8, None, 0.2, None]
    assert [each["mass"] for each in answers] == list(masses.values())
    found = quality([(measured, answers)])
    assert (found["balanced_accuracy"].mean, found["auc"].mean) == (0.5, 1.0)
    assert found["calibration_error"].mean == pytest.approx(0.2)


async def test_one_question_a_row(recording_client, image):
    recorder = recording_client(lambda request: 0.7)
    measured, _ = await Verifier(prompt=PROMPT, threshold=0.8)(
        recorder.client, image=image, text="?", label="no"
    )
    assert measured["false_refused"] == {"count": 1, "of": 1}
    assert measured["true_accepted"] == {"count": 0, "of": 0}
    with pytest.raises(ValueError, match=r"expected a label true or false.*'maybe'"):
        await Verifier(prompt=PROMPT)(recorder.client, image=image, text="?", label="maybe")
    with pytest.raises(ValueError, match="expected a statement as text, got None"):
        await Verifier(prompt=PROMPT)(recorder.client, image=image, text=None, label="no")


def test_columns_are_checked_before_any_model():
    assert Verifier(prompt=PROMPT).check(["image", "statements"]) is None
    assert Verifier(prompt=PROMPT).check(["text", "label"]) is None
    assert "requires `statements:" in str(Verifier(prompt=PROMPT).check(["text"]))


def line(row_id, text, verdict, step="golden"):
    label = {"row_id": row_id, "step": step, "text": text, "verdict": verdict, "run": "r"}
    return json.dumps(label) + "\n"


async def test_statements_of_label_files(recording_client, image, tmp_path):
    file = tmp_path / "labels.jsonl"
    lines = [("0", "a", "yes"), ("0", "b", "no", "details"), ("0", "c", "unsure"), ("1", "d", "no")]
    file.write_text("".join(line(*each) for each in lines))
    recorder = recording_client(lambda request: 0.9)
    verifier = Verifier(prompt=PROMPT, labels=[str(file)])
    assert verifier.check(["image", "row_id"]) is None
    _, answers = await verifier(recorder.client, image=image, row_id="0")
    assert [(each["text"], each["label"]) for each in answers] == [("a", True), ("b", False)]
    measured, answers = await verifier(recorder.client, image=image, row_id="a row that nobody labelled")
    assert answers == []
    assert measured["accuracy"] == {"count": 0, "of": 0}
    _, answers = await Verifier(prompt=PROMPT, labels=[str(file)], step="golden")(
        recorder.client, image=image, row_id="0"
    )
    assert [each["text"] for each in answers] == ["a"]


def test_label_files_are_checked_before_any_model(tmp_path):
    with pytest.raises(ValueError, match=r"labels: .*No such file"):
        Verifier(prompt=PROMPT, labels=[str(tmp_path / "none.jsonl")])
    file = tmp_path / "labels.jsonl"
    file.write_text(line("0", "a", "yes") + line("0", "a", "no"))
    with pytest.raises(ValueError, match=r"line 1 and .* line 2 contradict each other"):
        Verifier(prompt=PROMPT, labels=[str(file)])
    file.write_text(line("0", "a", "yes"))
    with pytest.raises(ValueError, match="labels: no label of step details"):
        Verifier(prompt=PROMPT, labels=[str(file)], step="details")


def rows(p, label, threshold=0.5):
    answers = [
        {"p_yes": float(x), "label": bool(y), "right": (x >= threshold) == bool(y)}
        for x, y in zip(p, label, strict=True)
    ]
    return [({}, [each]) for each in answers]


def test_numbers_over_all_rows_by_hand():
    found = quality(rows([0.9, 0.8, 0.3, 0.35, 0.2, 0.1], [1, 1, 1, 0, 0, 0]))
    assert found["auc"].mean == pytest.approx(8 / 9)
    assert found["balanced_accuracy"].mean == pytest.approx((2 / 3 + 1) / 2)
    assert 0.35 < found["best_threshold"].mean <= 0.8
    assert found["auc"].low <= found["auc"].mean <= found["auc"].high
    # bins: .9 (1), .8 (1), .3 (.65 predicted, 1 true), .2, .1 of false ones
    assert found["calibration_error"].mean == pytest.approx((0.1 + 0.2 + 0.35 + 0.2 + 0.1) / 6)


def test_ties_count_half_and_with_one_label_there_is_no_auc():
    assert quality(rows([0.5, 0.5], [1, 0]))["auc"].mean == 0.5
    assert quality(rows([0.5, 0.9], [1, 1])) == {}
    assert quality([({}, [])]) == {}


def test_a_calibrated_check_has_no_calibration_error():
    dice = np.random.default_rng(1)
    p = dice.random(4000)
    found = quality(rows(p, dice.random(4000) < p))
    assert found["calibration_error"].mean < 0.03
    assert found["best_threshold"].mean == pytest.approx(0.5, abs=0.08)
