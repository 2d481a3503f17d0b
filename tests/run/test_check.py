"""What is found, and shown, before a model loads."""

import tarfile
from pathlib import Path

import pytest
from runs import Compose, Engines, Rows

from scalecap.config.exports import WriteSettings
from scalecap.run.check import check_output
from scalecap.runner import RunError, plan, run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.steps.golden_sentences.treshold=0.7", "threshold"),
        ("pipeline.steps.golden_sentences.stage=verfy", "verify"),
        ("pipeline.steps.golden_sentences.texts=sentence", "sentences"),
        ("prompts.verify='{{ txt }}'", "text"),
        ("~pipeline.steps.final_details", "final_details"),
        ("data=jsonl", "data.path"),
    ],
)
def test_a_fault_is_found_before_a_model_loads(compose: Compose, override: str, message: str):
    settings = compose(override)
    for work in (run, plan):
        with pytest.raises(RunError, match=message):
            work(settings)


@pytest.mark.parametrize("source", ["jsonl", "webdataset"])
def test_a_shard_without_rows_is_reported(
    compose: Compose, rows: Rows, engines: Engines, tmp_path: Path, source: str
):
    path = rows(2)
    if source == "webdataset":  # its number of rows is not known before they are read
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(tmp_path / "0.png", "0.png")
        path = f"data.path={tmp_path}/a.tar"
    settings = compose(f"data={source}", path, "data.shard=2/3", "progress=false")
    with pytest.raises(RunError, match=r"has too few rows for data\.shard=2/3, which is empty"):
        run(settings, engines=engines)


def test_the_plan_shows_steps_models_and_prompts(compose: Compose):
    shown = plan(compose("model=scalecap-7b-72b"))
    written = "[golden_sentences, golden_sentences_scores, golden_sentences_refuted]"
    assert f"golden_sentences: verify([sentences]) -> {written}" in shown
    assert "llm: Qwen/Qwen2-72B-Instruct" in shown
    assert "Given the image, is the description '<text>' directly supported" in shown


def test_a_folder_that_cannot_be_searched_is_left_to_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stat(path: Path, **_: object) -> None:
        raise PermissionError(str(path))

    monkeypatch.setattr(Path, "stat", stat)
    check_output(tmp_path / "run", WriteSettings())


@pytest.mark.parametrize("name", ["captions.jsonl", "dataset/mine.txt"])
def test_files_of_the_user_are_never_replaced(
    compose: Compose, rows: Rows, engines: Engines, tmp_path: Path, name: str
):
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    words = ["data=jsonl", rows(2), "model=own", "model.vlm.name=m", "pipeline=seed", "progress=false"]
    with pytest.raises(RunError, match=r"already exists, and .* holds no run"):
        run(compose(*words), engines=engines)
    assert mine.read_text() == "mine"
    mine.unlink()
    if name != "captions.jsonl":
        mine.parent.rmdir()
    for _ in range(2):  # a run replaces its own
        assert run(compose(*words), engines=engines).done == 2
