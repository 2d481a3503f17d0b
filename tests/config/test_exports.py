"""What a run writes besides `captions.jsonl` on request."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from runs import Command, Compose, Rows, captions

from scalecap import Captioner
from scalecap.config.exports import Select
from scalecap.engines.base import Request
from scalecap.engines.scripted import Scripted
from scalecap.report.push import write_repository
from scalecap.run.merge import merge
from scalecap.runner import RunError, run


def names(folder: Path) -> list[str]:
    """Files below a folder, without the marker of folders that a run wrote."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".scalecap"
    )


ROW: dict[str, Any] = {
    **{"row_id": "0", "score": 0.5, "share": None, "fusion": "A dog."},
    **{"flags": {"fusion": ["truncated"]}, "error": None},
}


@pytest.mark.parametrize(
    ("expression", "flag"),
    [
        ("score >= 0.5", None),
        ("score > 0.5", "left_out"),
        ("share > 0.5", "not_computed"),
        ("share.value > 0.5", "not_computed"),
        ("'truncated' not in flags.fusion", "left_out"),
        ("'truncated' not in flags.check", None),
        ("flags.chekc", "not_computed"),
        ("row_id.__class__.__mro__", "not_computed"),
    ],
)
def test_a_row_is_taken_where_the_expression_holds(expression: str, flag: str | None):
    found = Select(expression, ["fusion", "check"]).exclusion(ROW)
    assert (found and found[0]) == flag
    failed = {**ROW, "error": {"step": "x", "kind": "k", "message": "m"}}
    assert Select("true", []).exclusion(failed) == ("left_out", "")


def test_what_a_run_no_longer_writes_stays_until_the_captions_change(
    compose: Compose, rows: Rows, engines: dict[str, Scripted], tmp_path: Path
):
    def optional() -> set[str]:
        always = {".hydra", "captions.jsonl", "journal.jsonl", "summary.json"}
        return {path.name for path in (tmp_path / "run").iterdir()} - always

    words = ["data=jsonl", "progress=false", "pipeline=direct"]
    (tmp_path / "run" / "mine").mkdir(parents=True)
    run(compose(*words, rows(1), "write.sidecars=txt"), engines=engines)
    assert optional() == {"dataset", "sidecars", "report.html", "mine"}
    for count, left in ((1, optional()), (2, {"mine", "report.html"})):
        done = run(compose(*words, rows(count), "write.format=[]", "report=false"), engines=engines)
        assert "run  rewrites report.html, which an earlier run wrote" in done.screen()
        assert len(captions()) == count
        assert optional() == left


def test_rows_left_out_by_select_stay_in_captions_and_another_select_sends_no_request(
    compose: Compose, rows: Rows, engines: dict[str, Scripted], tmp_path: Path
):
    data = rows(6, broken=(4,))
    folder = tmp_path / "out"
    forms = ("write.format=[parquet,webdataset]", "write.image=bytes", "write.sidecars=txt")
    words = ("data=jsonl", data, "report=false", f"output={folder}", *forms)
    summary = run(compose(*words, "write.select='id % 2 == 0'"), engines=engines)
    assert (summary.done, summary.failed, summary.left_out) == (5, 1, 4)
    assert [line["flags"].get("select") for line in captions(folder)] == [
        *(None, ["left_out"], None, ["left_out"], ["left_out"], ["left_out"]),
    ]
    assert [row["id"] for row in pq.read_table(folder / "dataset").to_pylist()] == [0, 2]
    assert names(folder / "sidecars") == ["0.txt", "2.txt"]
    assert (folder / "sidecars" / "0.txt").read_text() == captions(folder)[0]["final_caption"]
    assert json.loads((folder / "summary.json").read_text())["rows"]["left_out"] == 4
    assert "write.select: 2 of 6 rows exported, 4 left out" in summary.screen()
    assert "webdataset  tars of images" in summary.screen()
    write_repository(folder, "me/dogs", tmp_path / "pushed")
    card = (tmp_path / "pushed" / "README.md").read_text()
    assert "4 of them, including failed ones, were excluded" in card
    assert sum(len(pq.read_table(path)) for path in (tmp_path / "pushed" / "data").iterdir()) == 2

    Path(tmp_path / "4.png").unlink()
    Pillow.new("RGB", (30, 30)).save(tmp_path / "4.png")
    assert run(compose(*words), engines=engines).left_out is None

    def refuse(request: Request) -> str:
        raise AssertionError("a request was sent")

    silent = Scripted(refuse)
    again = run(compose(*words, "write.select='id < 1'"), engines=dict.fromkeys(engines, silent))
    assert (again.left_out, again.usage.total.requests) == (5, 0)
    assert [row["id"] for row in pq.read_table(folder / "dataset").to_pylist()] == [0]
    assert names(folder / "sidecars") == ["0.txt"]

    # None at all is a data set without rows, not one without columns.
    none = run(compose(*words, "write.select='id > 99'"), engines=dict.fromkeys(engines, silent))
    assert none.left_out == 6
    table = pq.read_table(folder / "dataset")
    assert (len(table), "final_caption" in table.column_names) == (0, True)


def test_sidecars_beside_the_images_of_a_folder(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.jpg", "sub/b.png"):
        Pillow.new("RGB", (30, 30)).save(photos / name)
    (photos / "a.txt").write_text("mine")
    words = ("data=folder", f"data.path={photos}", "report=false", "write.sidecars=txt")
    summary = run(compose(*words, "write.beside=new", "write.prefix='sks, '"), engines=engines)
    assert names(photos) == ["a.jpg", "a.txt", "sub/b.png", "sub/b.txt"]
    assert (photos / "a.txt").read_text() == "mine"
    assert (photos / "sub" / "b.txt").read_text() == "sks, A dog, brown."
    assert any("a.txt' already exists; set write.beside=replace" in note for note in summary.notes)
    run(compose(*words, "write.beside=replace"), engines=engines)
    assert (photos / "a.txt").read_text() == "A dog, brown."
    assert not (tmp_path / "run" / "sidecars").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("write.select='truht == 1'",), "write.select: no column 'truht'; did you mean 'truth'"),
        (
            ("write.sidecars=txt", "write.template='{{ final_capton }}'"),
            "write.template: no column 'final_capton'; did you mean 'final_caption'",
        ),
    ],
)
def test_an_unknown_column_is_refused_before_a_model_loads(
    compose: Compose, words: tuple[str, ...], message: str
):
    with pytest.raises(RunError, match=message):
        run(compose(*words))


def test_a_folder_that_no_run_wrote_is_refused_before_a_model_loads(
    compose: Compose, rows: Rows, tmp_path: Path
):
    (tmp_path / "run" / "webdataset").mkdir(parents=True)
    words = ("data=jsonl", rows(1), "write.format=[webdataset]")
    with pytest.raises(RunError, match="webdataset already exists and was not written by scalecap"):
        run(compose(*words))


def test_merged_shards_have_the_files_that_one_run_has(rows: Rows, typed: Command, tmp_path: Path):
    forms = ("write.format=[webdataset]", "write.sidecars=json", "write.select='id > 0'", "report=false")
    for number in (0, 1):
        words = ("data=jsonl", rows(3), f"data.shard={number}/2", f"output=shards/{number}", *forms)
        assert typed(*words) == 0
    summary = merge([tmp_path / "shards"], tmp_path / "whole")
    assert summary.left_out == 1
    assert names(tmp_path / "whole" / "sidecars") == ["1.json", "2.json"]
    assert names(tmp_path / "whole" / "webdataset") == ["train-00000.tar"]


def test_a_captioner_writes_exports_too(opened: list[Any], tmp_path: Path):
    images = [Pillow.new("RGB", (30, 30), (number, 0, 0)) for number in range(3)]
    write = {"sidecars": "txt", "template": "{{ final_caption | upper }}", "select": "row_id != '1'"}
    with Captioner(write={**write, "format": ["webdataset"]}, progress=False) as captioner:
        found = captioner.map(images, output=tmp_path / "out")
        assert isinstance(found, datasets.Dataset)
        assert found["row_id"] == ["0", "2"]
        assert [each.getpixel((0, 0))[0] for each in found["image"]] == [0, 2]
        assert captioner.summary is not None
        assert captioner.summary.left_out == 1
    assert names(tmp_path / "out" / "sidecars") == ["0.txt", "2.txt"]
    assert (tmp_path / "out" / "sidecars" / "0.txt").read_text() == "A DOG, BROWN."
    assert names(tmp_path / "out" / "webdataset") == ["train-00000.tar"]
