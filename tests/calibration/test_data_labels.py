"""Labels of a data set: a pipeline's own check runs on them, by config, and gets a promise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labelled import STEPS
from PIL import Image as Pillow
from runs import Command, Compose, Rows, captions

from scalecap.calibration.record import read_calibration
from scalecap.config.settings import SettingsError
from scalecap.engines.scripted import Scripted
from scalecap.run.summary import Summary
from scalecap.runner import RunError, plan, run

Records = list[dict[str, Any]]
Benchmark = Callable[..., Summary]


def pope(count: int) -> Records:
    """As lmms-lab/POPE: several questions per image, one per row."""
    return [
        {
            "id": str(3 * number + at),
            "question_id": str(at),
            "question": f"Is there a {kind} in the image?",
            "answer": answer,
            "image_source": f"COCO_{number}",
            "category": "adversarial",
            "picture": number,
        }
        for number in range(count)
        for at, (kind, answer) in enumerate([("dog", "yes"), ("cat", "no"), ("brown dog", "yes")])
    ]


def haldec(count: int) -> Records:
    """As HalDec-Bench: one sentence of a caption per row."""
    return [
        {
            "model": "captioner",
            "image_name": f"{number}.png",
            "sentence_index": at,
            "caption": f"There is a {kind}.",
            "annotation": annotation,
            "error_type": "object" if annotation == "Incorrect" else None,
            "error_words": kind if annotation == "Incorrect" else None,
            "agreement_ratio": 1.0,
            "picture": number,
        }
        for number in range(count)
        for at, (kind, annotation) in enumerate(
            [("dog", "Correct"), ("cat", "Incorrect"), ("big dog", "Unknown")]
        )
    ]


def detailverify(count: int) -> Records:
    """As DetailVerifyBench: a long caption in which the wrong words are tagged."""
    return [
        {
            "filename": f"{number}.png",
            "category": "Nature",
            "Modify": "Yes",
            "GT_description": "There is a dog.",
            "description_tag": "There is a dog. There is a <Hallucination>cat</Hallucination>. It is a dog.",
            "hallucination_labels": [{"text": "cat", "labels": ["Object"]}],
            "picture": number,
        }
        for number in range(count)
    ]


@pytest.fixture
def benchmark(compose: Compose, engines: dict[str, Scripted], tmp_path: Path) -> Benchmark:
    """Runs the check of the tests' pipeline on the statements of these rows."""

    def made(rows: Records, *overrides: str) -> Summary:
        lines = []
        for row in rows:
            number = row.pop("picture")
            Pillow.new("RGB", (30, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
            lines.append(json.dumps({"image": f"{number}.png", **row}))
        (tmp_path / "benchmark.jsonl").write_text("\n".join(lines))
        data = ("data=jsonl", f"data.path={tmp_path}/benchmark.jsonl", f"output={tmp_path / 'labelled'}")
        settings = compose(*data, "pipeline=none", STEPS, "cache=off", "report=true", *overrides)
        return run(settings, engines=engines, command="python -m scalecap labels=x")

    return made


@pytest.fixture
def calibrate(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calibrates what `benchmark` made; returns the output, or the error."""

    def typed(*words: str) -> str:
        code = command("calibrate", tmp_path / "labelled", *words)
        return capsys.readouterr()[code > 0]

    return typed


@pytest.fixture
def promised(compose: Compose, rows: Rows, engines: dict[str, Scripted], tmp_path: Path) -> Benchmark:
    """Captions images under the promise that `calibrate` made."""

    def made(*overrides: str, steps: str = STEPS, wrong: str = "0.1") -> Summary:
        promise = (
            f"calibration={tmp_path}/labelled/calibration.json",
            f"wrong={{golden_sentences: {wrong}}}",
        )
        settings = compose(
            *("data=jsonl", rows(20), "pipeline=none", steps, "cache=off", "report=true"),
            *(f"output={tmp_path / 'promised'}", *promise, *overrides),
        )
        return run(settings, engines=engines, command="python -m scalecap")

    return made


@pytest.mark.parametrize(
    ("labels", "schema", "statements", "labelled", "texts"),
    [
        ("pope", pope, 180, "120 yes, 60 no", "There is a dog in the image."),
        ("haldec", haldec, 180, "60 yes, 60 no, 60 unsure (counted as no)", "There is a dog."),
        ("detailverify", detailverify, 180, "120 yes, 60 no", "There is a dog."),
    ],
)
def test_benchmark_labels_give_a_promise_for_a_pipelines_check(
    benchmark: Benchmark,
    calibrate: Callable[..., str],
    promised: Benchmark,
    tmp_path: Path,
    labels: str,
    schema: Callable[[int], Records],
    statements: int,
    labelled: str,
    texts: str,
):
    summary = benchmark(schema(60), f"labels={labels}")
    assert summary.failed == 0
    assert summary.usage.total.requests == statements  # the check alone, with the pipeline's own prompt
    command = f"scalecap calibrate {tmp_path}/labelled --wrong 0.05"
    assert summary.screen().endswith(f"Next: make a promise of its labels:\n  {command}")
    row = captions("labelled")[0]
    assert row["golden_sentences_scores"][0]["text"] == texts
    assert "init_caption" not in row
    output = calibrate("--wrong", "0.2")
    assert f"golden_sentences: {statements} labels of 60 images: {labelled}" in output
    assert "the statements come from the data, so guarantees are about statements like these" in output
    assert "tested on one random label per image (binomial bound)" in output
    made = read_calibration(tmp_path / "labelled" / "calibration.json").steps["golden_sentences"]
    assert (made.labels, made.images, made.given) == (statements, 60, True)
    assert made.scope["steps"] == {
        "golden_sentences": {
            "stage": "verify",
            "prompt": "True: {{ text }}",
            **{"ensemble": None, "mode": "choose", "batch": 1, "batch_prompt": None, "model": "vlm"},
        }
    }
    found = next((each for each in made.promises if each.threshold is not None), None)
    if labels == "haldec":  # a third is neither right nor wrong, and kept
        assert found is None
        return
    assert found is not None
    summary = promised(wrong=str(found.wrong))
    promise = summary.promises["golden_sentences"]["sentence"]
    assert (
        "for images and statements like those labelled (60 labels, one per image, binomial bound;" in promise
    )
    assert promise.endswith("benchmark.jsonl, not this pipeline's statements)")
    assert "statements like those labelled" in (tmp_path / "promised" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            {"steps": STEPS.replace("'True: {{ text }}'}, raw", "'Is it so: {{ text }}'}, raw")},
            "steps.golden_sentences.prompt: was True",
        ),
        (
            {
                "steps": STEPS.replace(
                    "'True: {{ text }}'}, raw", "'True: {{ text }}', ensemble: ['So: {{ text }}']}, raw"
                )
            },
            "steps.golden_sentences.ensemble: was None, is ['So: {{ text }}']",
        ),
        ({"overrides": ["model.vlm.max_pixels=10000"]}, "models.vlm.max_pixels: was None, is 10000"),
        ({"overrides": ["min_mass=0.2"]}, "min_mass: was 0.1, is 0.2"),
    ],
)
def test_a_run_with_another_check_is_refused(
    benchmark: Benchmark,
    calibrate: Callable[..., str],
    promised: Benchmark,
    changed: dict[str, Any],
    difference: str,
):
    benchmark(pope(60), "labels=pope")
    calibrate("--wrong", "0.2")
    with pytest.raises(RunError) as error:
        promised(*changed.pop("overrides", []), wrong="0.2", **changed)
    assert "does not apply to this run's golden_sentences" in str(error.value)
    assert difference in str(error.value)


def test_the_steps_before_the_check_and_the_sampling_do_not_count(
    benchmark: Benchmark, calibrate: Callable[..., str], promised: Benchmark
):
    benchmark(pope(60), "labels=pope")
    calibrate("--wrong", "0.2")
    other = STEPS.replace("Caption.", "'Say all.'")
    assert other != STEPS
    summary = promised("sampling.temperature=0.1", steps=other, wrong="0.2")
    assert summary.promises["golden_sentences"]["wrong"] == 0.2


def test_a_check_with_a_limit_in_a_loop_is_labelled_without_them(benchmark: Benchmark):
    check = "+pipeline.steps.golden_sentences"
    loop = [f"{check}.limit='2 - (sentences | length)'", f"{check}.adds_to=sentences", f"{check}.rounds=2"]
    assert benchmark(pope(3), "labels=pope", *loop).usage.total.requests == 9


def test_rows_without_labels_fail_with_column_and_fix(benchmark: Benchmark, calibrate: Callable[..., str]):
    rows = pope(60)
    rows[4]["answer"] = None
    rows[5]["question"] = 7
    summary = benchmark(rows, "labels=pope")
    assert (summary.done, summary.failed) == (178, 2)
    errors = {row["row_id"]: row["error"]["message"] for row in captions("labelled") if row["error"]}
    assert errors["4"].startswith("column 'answer' has no label: say what it means with")
    assert errors["5"].startswith("column 'question': expected a text or a list of texts, got 7")
    output = calibrate("--wrong", "0.2")
    assert "  row '4' failed and is excluded: column 'answer' has no label: say what it means" in output
    assert "  row '5' failed and is excluded: column 'question': expected a text or a list" in output


def test_a_data_set_without_any_label_makes_no_calibration(
    benchmark: Benchmark, calibrate: Callable[..., str]
):
    rows = detailverify(3)
    for row in rows:
        row["description_tag"] = None
    benchmark(rows, "labels=detailverify")
    assert "has no labelled statements: 3 rows failed, see captions.jsonl" in calibrate()


def test_a_captioning_run_has_no_labels_of_its_own(made: Path, command: Command, capsys):
    assert command("calibrate", made) == 1
    assert (
        "has no labels; pass those of its report as --labels labels.jsonl, or run" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["labels=statements", "labels.check=golden_sentence"],
            "no such step; did you mean 'golden_sentences'",
        ),
        (
            ["labels=statements", "labels.check=sentences"],
            "labels.check=sentences: not a check with `stage: verify`",
        ),
        (
            ["labels=statements", "+pipeline.steps.golden_sentences.when='sentences'"],
            "labels.check=golden_sentences: its `when` depends on other steps",
        ),
    ],
)
def test_a_check_that_cannot_be_labelled_is_refused(compose: Compose, overrides: list[str], message: str):
    with pytest.raises(SettingsError) as error:
        compose(*overrides)
    assert message in str(error.value)


def test_an_unknown_column_is_reported_before_a_model_loads(compose: Compose, rows: Rows):
    settings = compose("data=jsonl", rows(3), "labels=statements", "labels.label=lable")
    with pytest.raises(RunError) as error:
        plan(settings)
    assert "labelled: columns.text: no step and no data column is named 'text'" in str(error.value)
    assert "labelled: columns.lable: no step and no data column is named 'lable'" in str(error.value)
