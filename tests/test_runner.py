"""Whole runs of the real configs on the scripted engine."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image as Pillow
from runs import Answer, Compose, Engines, Rows, captions, first_words, roles

from scalecap.engines.base import EngineError, Generate, Request
from scalecap.runner import RunError, run


@pytest.mark.parametrize("pipeline", ["default", "seed"])
def test_every_column_of_the_seed_is_written(
    compose: Compose, engines: Engines, tmp_path: Path, pipeline: str
):
    summary = run(
        compose("data.limit=3", f"pipeline={pipeline}"), engines=engines, command="python -m scalecap"
    )
    assert (summary.exit_code, summary.done, summary.failed) == (0, 3, 0)
    row = captions()[0]
    assert list(row) == [
        *("row_id", "image", "truth", "init_caption", "sentences"),
        *("golden_sentences", "golden_sentences_scores", "golden_sentences_refuted"),
        *("raw_questions", "q_list", "raw_answers"),
        *("final_details", "final_details_scores", "final_details_refuted", "final_caption"),
        *("flags", "error"),
    ]
    assert row["init_caption"] == "There is a dog. There is a cat."
    assert row["golden_sentences"] == ["There is a dog."]
    cat = {"text": "There is a cat.", "p_yes": 0.1, "kept": False, "mass": 1.0}
    assert row["golden_sentences_scores"][1] == cat
    assert row["raw_answers"] == ["The dog is brown.", "The dog is at the left."]
    assert row["final_caption"] == "A dog, brown."
    loaded = datasets.load_dataset(str(tmp_path / "run" / "dataset"), split="train", cache_dir=str(tmp_path))
    assert loaded[0]["golden_sentences_scores"] == row["golden_sentences_scores"]


def test_the_seeds_sampled_checks_read_the_first_word(compose: Compose, engines: Engines):
    sampled = [f"pipeline.steps.{step}.mode=sampled" for step in ("golden_sentences", "final_details")]
    run(compose("data.limit=1", "pipeline=seed", "prompts=seed", *sampled), engines=engines)
    row = captions()[0]
    assert row["golden_sentences"] == ["There is a dog."]
    assert row["golden_sentences_scores"][0] == {
        "text": "There is a dog.",
        "p_yes": None,
        "kept": True,
        "mass": None,
    }


def test_rows_that_fail_are_written_and_tried_again(
    answer: Answer, compose: Compose, engines: Engines, tmp_path: Path, rows: Rows
):
    settings = compose("data=jsonl", rows(4, broken=(1,)))
    summary = run(settings, engines=engines, command="python -m scalecap data=jsonl")
    assert (summary.exit_code, summary.done, summary.failed) == (3, 3, 1)
    written = captions()
    assert [row["id"] for row in written] == [0, 1, 2, 3]
    assert written[1]["error"]["step"] == "image"
    assert written[1]["final_caption"] is None
    assert f"python -m scalecap data=jsonl output={tmp_path}/run" in summary.screen()

    Pillow.new("RGB", (30, 30)).save(tmp_path / "1.png")
    calls: list[Request] = []
    counting = roles(lambda request: calls.append(request) or answer(request))
    again = run(compose("data=jsonl", f"data.path={tmp_path}/rows.jsonl", "cache=off"), engines=counting)
    assert (again.exit_code, again.done, again.reused) == (0, 4, 3)
    assert [row["error"] for row in captions()] == [None] * 4
    assert sum(first_words(call) == "Describe the picture." for call in calls) == 1


def test_a_finished_run_opens_no_engine(compose: Compose, engines: Engines):
    run(compose("data.limit=2"), engines=engines)
    before = captions()
    summary = run(compose("data.limit=2", "model.vlm.name=scenes"))  # the real engine would be opened
    assert (summary.exit_code, summary.done, summary.reused) == (0, 2, 2)
    assert captions() == before


def test_a_run_with_nothing_left_to_do_keeps_the_models_that_made_its_rows(
    compose: Compose, engines: Engines, tmp_path: Path
):
    """`calibrate` and the data card read them from the summary."""
    recorded = []
    for words in ((), ("write.sidecars=txt",)):
        run(compose("data.limit=1", *words), engines=engines)
        recorded.append(json.loads((tmp_path / "run" / "summary.json").read_text())["models"])
    assert recorded[1] == recorded[0] != {}


def test_more_rows_resume_in_the_same_folder(compose: Compose, engines: Engines):
    run(compose("data.limit=2"), engines=engines)
    summary = run(compose("data.limit=3", "rows_in_flight=1"), engines=engines)
    assert (summary.done, summary.reused) == (3, 2)
    assert run(compose("data.limit=1"), engines=engines).done == 1
    assert len(captions()) == 1


def test_a_new_threshold_sends_no_request(compose: Compose, engines: Engines, tmp_path: Path):
    run(compose("data.limit=2"), engines=engines)
    changed = compose("data.limit=2", "pipeline.steps.golden_sentences.threshold=0.7", f"output={tmp_path}/b")
    summary = run(changed, engines=engines)
    total = summary.usage.total
    assert total.requests == total.reused == 18


def test_an_engine_error_costs_its_row_alone(answer: Answer, compose: Compose):
    failed: set[str] = set()

    def fails_once(request: Request) -> str | float:
        if request.prompt.image and not failed:
            failed.add(request.prompt.image.hash)
        if request.prompt.image and request.prompt.image.hash in failed:
            raise EngineError("no")
        return answer(request)

    summary = run(compose("data.limit=3", "cache=off"), engines=roles(fails_once))
    assert (summary.exit_code, summary.done, summary.failed) == (3, 2, 1)
    errors = [row["error"] for row in captions() if row["error"]]
    assert errors == [{"step": "init_caption", "kind": "engine", "message": "no"}]


def test_the_embedded_model_warns_of_other_images(compose: Compose, rows: Rows, engines: Engines):
    summary = run(compose("data=jsonl", rows(1)), engines=engines)
    assert "knows its own world" in summary.screen()
    assert not run(compose("data.limit=1", "output=b"), engines=engines).notes


def test_flags_are_counted(compose: Compose):
    nothing_true = roles(lambda request: "There is a cat." if isinstance(request, Generate) else 0.0)
    summary = run(compose("data.limit=2"), engines=nothing_true)
    assert summary.flags == {"final_caption": {"fallback": 2}}
    assert captions()[0]["flags"] == {"final_caption": ["fallback"]}
    assert captions()[0]["final_caption"] == "There is a cat."


def test_items_are_kept_and_fail_as_part_of_their_row(compose: Compose, rows: Rows):
    broken, prompts = True, list[str]()

    def says(request: Request) -> Any:
        text, image = request.prompt.text, request.prompt.image
        prompts.append(text)
        if isinstance(request, Generate):
            return f"A dog. It is number {request.seed}."
        if broken and image.pixels.getpixel((0, 0))[0] == 1 and "number" in text:
            raise EngineError("no")
        return 0.9

    settings = compose("data=jsonl", rows(3), "pipeline=best_of_n", "pipeline.steps.drafts.samples=3")
    summary = run(settings, engines=roles(says))
    first, failed, last = captions()
    assert (summary.done, summary.failed, failed["error"]["step"]) == (2, 1, "golden_sentences")
    assert [row["id"] for row in captions()] == [0, 1, 2]
    assert len(set(failed["drafts"])) == len(set(first["drafts"])) == 3
    assert failed["sentences_about"] == first["sentences_about"] == [0, 0, 1, 1, 2, 2]
    assert not {*first["drafts"]} & {*last["drafts"]}
    broken = False
    prompts.clear()
    assert run(settings, engines=roles(says)).done == 3
    # Drafts, and the check of the sentence that they share, are in the cache.
    assert len(prompts) == 3
    assert all("number" in text for text in prompts)
    assert captions()[0] == first


def test_an_empty_data_set_is_an_error(compose: Compose, engines: Engines, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(RunError, match=r"no rows|empty"):
        run(compose("data=jsonl", f"data.path={tmp_path}/rows.jsonl"), engines=engines)


def test_columns_of_the_data_that_the_output_has_too_are_noted(compose, engines, tmp_path):
    Pillow.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "error": "old", "flags": {}}')
    summary = run(compose("data=jsonl", f"data.path={tmp_path}/rows.jsonl"), engines=engines)
    assert "The data's own flags and error are left out" in summary.screen()
    assert [row["error"] for row in captions()] == [None]


@pytest.mark.parametrize("depth", [98, 101, 800])
def test_what_is_nested_too_deep_is_cut_off_and_costs_no_run(
    compose: Compose, rows: Rows, tmp_path: Path, depth: int
):
    deep = "[" * depth + "]" * depth
    words = ["data=jsonl", rows(2), "model=own", "model.vlm.name=m", "pipeline=none", "progress=false"]
    words.append("+pipeline.steps.facts={stage: generate, prompt: Facts, image: image, parse: json}")
    (tmp_path / "rows.jsonl").write_text(f'{{"image": "0.png", "deep": {deep}}}\n{{"image": "1.png"}}')
    for reused in (0, 2):
        summary = run(compose(*words), engines=roles(lambda request: deep))
        assert (summary.done, summary.reused) == (2, reused)
    row = captions()[0]
    assert json.dumps(row["facts"]).count("[") == json.dumps(row["deep"]).count("[") == min(depth, 99)


def test_rows_with_a_row_id_of_their_own_are_not_redone(
    compose: Compose, rows: Rows, engines: Engines, tmp_path: Path
):
    words = ["data=jsonl", rows(2), "model=own", "model.vlm.name=m", "pipeline=seed", "progress=false"]
    (tmp_path / "rows.jsonl").write_text('{"row_id": 7, "image": "0.png"}\n{"row_id": 8, "image": "1.png"}')
    for reused in (0, 2):
        summary = run(compose(*words), engines=engines)
        assert (summary.done, summary.reused) == (2, reused)
    assert [row["row_id"] for row in captions()] == ["0", "1"]
