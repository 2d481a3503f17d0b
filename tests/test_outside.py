"""What is exported with a data set: of the images that rows name by paths, only the data's own."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from image_files import an_image
from runs import Compose

from scalecap.engines.scripted import Scripted
from scalecap.run.summary import Summary
from scalecap.runner import run

OWN = ["own.png", "below/own.png", "../data/own.png"]
CELLS = [*OWN, "secret.txt", "../other.png", "../secret.txt", "ABSOLUTE"]


@pytest.fixture
def written(compose: Compose, engines: dict[str, Scripted], tmp_path: Path) -> Callable[..., Any]:
    """Runs over rows that name files in and outside of the data's folder; returns what is exported."""
    for name in ("data/own.png", "data/below/own.png", "other.png", "absolute.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(an_image())
    for name in ("data/secret.txt", "secret.txt"):
        (tmp_path / name).write_text("the password")
    cells = [str(tmp_path / "absolute.png") if each == "ABSOLUTE" else each for each in CELLS]
    lines = [json.dumps({"image": cell, "caption": "A dog."}) for cell in cells]
    (tmp_path / "data" / "rows.jsonl").write_text("\n".join(lines))

    def made(*words: str) -> tuple[Summary, list[bytes | None]]:
        data = ["data=jsonl", f"data.path={tmp_path}/data/rows.jsonl", "write.image=bytes", "report=false"]
        summary = run(compose(*data, "progress=false", *words), engines=engines)
        (path,) = (tmp_path / "run" / "dataset").glob("*.parquet")
        return summary, [row["image"] and row["image"]["bytes"] for row in pq.read_table(path).to_pylist()]

    return made


JUDGED = ("pipeline=none", "evaluate=density", "evaluate.caption=caption")
"""A run in which no step looks at the images."""


@pytest.mark.parametrize("words", [JUDGED, ()])
def test_no_text_and_no_image_from_outside_is_exported(written: Callable[..., Any], words: tuple[str, ...]):
    summary, contents = written(*words)
    assert contents == [an_image()] * 3 + [None] * 4
    notes = " ".join(summary.notes)
    assert f"Images left out of dataset/: {3 if words else 2} (" in notes
    assert "other.png' is outside of the data's folder; set data.allow_outside=true to use it" in notes
    assert summary.done == (7 if words else 5), "images from anywhere are captioned"


def test_images_from_outside_are_exported_where_allowed(written: Callable[..., Any]):
    summary, contents = written(*JUDGED)
    assert contents.count(None) == 4
    again, contents = written(*JUDGED, "data.allow_outside=true")  # resumes, and captions nothing again
    assert again.reused == summary.done == 7
    assert contents == [*[an_image()] * 3, None, an_image(), None, an_image()]
    assert "secret.txt' is not an image in a supported format" in " ".join(again.notes)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_of_the_hub_copies_nothing_that_its_cells_name_elsewhere(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path, streaming: bool
):
    (tmp_path / "set").mkdir()
    for name in ("own.png", "../mine.png"):
        (tmp_path / "set" / name).write_bytes(an_image())
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("set/own.png", "mine.png")]
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    held = datasets.Dataset.from_dict({"image": cells, "caption": ["A dog."] * 2}, features=features)
    pq.write_table(held.data.table, tmp_path / "set" / "train.parquet")  # to_parquet would embed the files
    for source in (["data=hub", f"data.streaming={str(streaming).lower()}"], ["data=parquet"]):
        words = [*source, f"data.path={tmp_path}/set/train.parquet", "write.image=bytes", "report=false"]
        output = tmp_path / source[0]
        summary = run(compose(*words, *JUDGED, f"output='{output}'"), engines=engines)
        (path,) = (output / "dataset").glob("*.parquet")
        assert [bool(row["image"]) for row in pq.read_table(path).to_pylist()] == [True, False]
        assert "mine.png' is outside of the data's folder" in " ".join(summary.notes)


def test_links_of_a_set_of_the_hub_lead_nowhere_else(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    (tmp_path / "set").mkdir()
    (tmp_path / "mine.png").write_bytes(an_image())
    for name in ("mine.zip", "set/own.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.png", an_image())
    links = [f"zip://a.png::{tmp_path}/set/own.zip", f"zip://a.png::file://{tmp_path}/set/own.zip"]
    links += [each.replace("set/own", "mine") for each in links] + [f"file://{tmp_path}/mine.png"]
    links += [f"zip://a.png::file://{tmp_path}/set/../mine.zip"]
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    cells = [{"bytes": None, "path": link} for link in links]
    held = datasets.Dataset.from_dict({"image": cells, "caption": ["A dog."] * len(links)}, features=features)
    pq.write_table(held.data.table, tmp_path / "set" / "train.parquet")
    words = ["data=hub", f"data.path={tmp_path}/set/train.parquet", "write.image=bytes", "report=false"]
    for more, exported in (((), 2), (("data.allow_outside=true",), len(links))):
        summary = run(compose(*words, *more, *JUDGED), engines=engines)
        (path,) = (tmp_path / "run" / "dataset").glob("*.parquet")
        found = [bool(row["image"]) for row in pq.read_table(path).to_pylist()]
        assert found == [True] * exported + [False] * (len(links) - exported), summary.notes
