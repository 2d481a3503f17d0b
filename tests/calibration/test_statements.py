"""Labels of a run: parsing of label files, matching to statements, error messages."""

import json
from pathlib import Path

import pytest
from labelled import labels_of, write_labels
from runs import captions

from scalecap.calibration.statements import Statement, match_labels, one_per_image, to_arrays
from scalecap.calibration.statistics import THRESHOLDS, kept_counts
from scalecap.metrics.labels import LabelError, read_labels
from scalecap.run.folder import Run


def read(path: Path, text: str):
    path.write_text(text)
    return read_labels([path])


GOOD = '{"row_id": "0", "step": "s", "text": "t", "verdict": "yes", "run": "r"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no labels"),
        ("\n\n", "has no labels"),
        (GOOD + "{no", "line 2 is not JSON"),
        (GOOD + "[1]", "line 2: expected an object with row_id, step, text, verdict, run, got [1]"),
        (GOOD.replace('"0"', "7"), "line 1: expected a text in 'row_id', got 7"),
        (GOOD.replace('"run": "r"', '"of": "r"'), "line 1: expected a text in 'run', got None"),
        (GOOD.replace('"yes"', '"yess"'), "line 1: unknown verdict 'yess'; did you mean 'yes'"),
        (GOOD.replace('"yes"', "true"), "line 1: expected a text in 'verdict', got True"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_malformed_lines_are_reported_by_file_and_line(tmp_path: Path, text: str, message: str):
    with pytest.raises(LabelError) as error:
        read(tmp_path / "labels.jsonl", text)
    assert message in str(error.value)
    assert str(tmp_path / "labels.jsonl") in str(error.value)


def test_what_was_kept_without_a_probability_is_kept_by_every_threshold(made: Path, tmp_path: Path):
    """A check of several texts decides by its words where the server can't score them."""
    rows = captions(made)
    for kept, row in ((True, rows[0]), (False, rows[2])):
        row["golden_sentences_scores"][0] |= {"p_yes": None, "kept": kept}
    (made / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = labels_of(made, "golden_sentences")
    found = match_labels(read_labels([write_labels(tmp_path / "l.jsonl", labels)]), Run(made, "run"))
    p_yes, true, _ = to_arrays(found["golden_sentences"])
    assert (p_yes[0], p_yes[2]) == (1.0, -1.0)
    assert kept_counts(p_yes[[0, 2]], true[[0, 2]])[0].tolist() == [1] * len(THRESHOLDS)


def test_labels_find_their_statements(made: Path, tmp_path: Path):
    labels = labels_of(made, "golden_sentences") + labels_of(made, "final_details")[:3]
    path = write_labels(tmp_path / "labels.jsonl", [*labels, labels[5]])  # one of them twice
    found = match_labels(read_labels([path]), Run(made, "run"))
    assert {step: len(each) for step, each in found.items()} == {"golden_sentences": 120, "final_details": 3}
    first = found["golden_sentences"][0]
    assert first == Statement("0", "There is a dog.", 0.6, "yes", first.image)
    assert len({each.image for each in found["golden_sentences"]}) == 120
    second = found["golden_sentences"][1]
    assert (second.text, second.verdict) == ("There is a cat.", "no")
    assert second.p_yes == pytest.approx(0.11)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"step": "golden_sentence"}, "no check 'golden_sentence'; did you mean 'golden_sentences'"),
        ({"row_id": "1000"}, "has no row '1000'; is this label of another run?"),
        ({"run": "0123456789ab"}, "line 1 was sampled from run 0123456789ab, but"),
        ({"text": "There is a cow."}, "row '0' has no statement 'There is a cow.' at golden_sentences"),
    ],
)
def test_labels_of_something_else_are_refused(made: Path, tmp_path: Path, changed: dict, message: str):
    label = labels_of(made, "golden_sentences")[0] | changed
    with pytest.raises(LabelError) as error:
        match_labels(read_labels([write_labels(tmp_path / "labels.jsonl", [label])]), Run(made, "run"))
    assert message in str(error.value)


def test_contradicting_verdicts_name_both_lines(made: Path, tmp_path: Path):
    label = labels_of(made, "golden_sentences")[0]
    one = write_labels(tmp_path / "one.jsonl", [label])
    other = write_labels(tmp_path / "other.jsonl", [label | {"verdict": "unsure", "author": "you"}])
    with pytest.raises(
        LabelError,
        match=r"one.jsonl line 1 and .*other.jsonl line 1 contradict each other \(yes, unsure\)",
    ):
        match_labels(read_labels([one, other]), Run(made, "run"))


def test_one_statement_of_each_image_is_drawn_whatever_the_order():
    statements = [Statement(str(n // 2), f"text {n}", 0.5, "yes", f"image {n // 3}") for n in range(90)]
    chosen = one_per_image(statements, 0)
    assert sorted(each.image for each in chosen) == sorted({each.image for each in statements})
    assert set(one_per_image(statements[::-1], 0)) == set(chosen)
    assert set(one_per_image(statements, 1)) != set(chosen)
    places = [int(each.text.split()[1]) % 3 for each in chosen]
    assert {places.count(place) > 3 for place in range(3)} == {True}  # none is preferred


def test_unsure_counts_as_no():
    statements = [("0", "unsure", "x"), ("1", "yes", "y"), ("2", "yes", "x")]
    labelled = to_arrays([Statement(row, "a", 0.5, verdict, image) for row, verdict, image in statements])
    assert labelled.p_yes.tolist() == [0.5, 0.5, 0.5]
    assert labelled.true.tolist() == [False, True, True]
    assert (labelled.image.tolist(), labelled.images) == ([0, 1, 0], 2)
    assert to_arrays([]).images == 0
