"""Sidecars: names that stay in their folder whatever the ids are, and the text that trainers read."""

import json
from pathlib import Path
from typing import Any

import pytest
from runs import captions

from scalecap.config.exports import WriteSettings
from scalecap.data import writer
from scalecap.data.images import find_image
from scalecap.data.sidecars import UniqueNames
from scalecap.rows import Row


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("cats/one.jpg", "cats/one.txt"),
        ("12", "12.txt"),
        ("shards/000.tar#a.b", "shards/000.tar#a.b.txt"),
        ("../../etc/passwd", "etc/passwd.txt"),
        ("/etc/passwd", "etc/passwd.txt"),
        ("..\\..\\a", "_._.._a.txt"),
        ("C:\\a", "C__a.txt"),
        (".hidden/.png", "_hidden/_png.txt"),
        ("a\0b\n", "a_b_.txt"),
        ("con/nul.png", "_con/_nul.txt"),
        ("a. ", "a.txt"),
        ("a.txt/b", "a.txt_/b.txt"),
        ("", "_.txt"),
        ("//..//", "_.txt"),
        ("\ud800", "_.txt"),
        ("é" * 300, "é" * 100 + ".txt"),
        ("/".join("abcdefghijk"), "a/b/c/d/e/f/g/h_i_j_k.txt"),
    ],
)
def test_an_id_makes_a_name_that_stays_in_the_folder(id: str, name: str):
    assert UniqueNames(".txt").new(id) == name


def test_a_name_that_is_taken_gets_a_number():
    names = UniqueNames(".txt")
    made = [names.new(id) for id in ("a.jpg", "a.png", "A.jpg", "a-2", "a", "b/a")]
    assert made == ["a.txt", "a-2.txt", "A-3.txt", "a-2-2.txt", "a-4.txt", "b/a.txt"]


def rows(captions: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            **{"index": n, "id": f"{n}.jpg", "stamp": "", "input": {"image": f"{n}.jpg", "self": n}},
            **{"columns": {"caption": caption}, "flags": {}, "error": None},
        }
        for n, caption in enumerate(captions)
    ]


def test_a_caption_is_one_line_with_its_prefix_and_suffix(tmp_path: Path):
    records = rows(["A dog.\n It is\tbrown. ", None, "{{ self }} <b>é</b>"])
    records.append(
        {**records[0], "index": 3, "columns": {}, "error": {"step": "x", "kind": "k", "message": ""}}
    )
    settings = WriteSettings(sidecars="txt", template="{{ caption }}", prefix="sks, ", suffix=" end")
    written = writer.write(tmp_path, lambda: records, ["caption"], settings)
    texts = {path.name: path.read_text("utf-8") for path in (tmp_path / "sidecars").glob("*.txt")}
    assert texts == {"0.txt": "sks, A dog. It is brown. end", "2.txt": "sks, {{ self }} <b>é</b> end"}
    assert dict(written.missing_sidecars) == {"the caption is empty": 1}


def test_json_holds_the_row(tmp_path: Path):
    writer.write(tmp_path, lambda: rows(["é"]), ["caption"], WriteSettings(sidecars="json"))
    assert [json.loads((tmp_path / "sidecars" / "0.json").read_text("utf-8"))] == captions(tmp_path)


def test_a_run_replaces_its_own_folder_and_no_other(tmp_path: Path):
    settings = WriteSettings(sidecars="txt", template="{{ caption }}")
    for texts in (["a", "b"], ["c"]):
        writer.write(tmp_path, lambda texts=texts: rows(texts), ["caption"], settings)
    assert [path.read_text() for path in (tmp_path / "sidecars").glob("*.txt")] == ["c"]
    (tmp_path / "other" / "sidecars").mkdir(parents=True)
    (tmp_path / "other" / "sidecars" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not written by scalecap"):
        writer.write(tmp_path / "other", lambda: rows(["c"]), ["caption"], settings)
    assert (tmp_path / "other" / "sidecars" / "mine.txt").read_text() == "mine"


def beside(folder: Path, captions: list[Any], names: list[str], how: str = "new") -> dict[str, int]:
    """Writes sidecars of these images; returns why some are missing."""

    def row(n: int, name: str) -> Row:
        def find() -> Path:
            return find_image(name, folders=[folder / "data"], within=[folder / "data"])

        return Row(n, {"image": name}, lambda: pytest.fail("opened"), find_image=find, id=f"{n}.jpg")

    records = [
        {**record, "input": {"image": name}} for record, name in zip(rows(captions), names, strict=True)
    ]
    settings = WriteSettings(sidecars="txt", beside=how, template="{{ caption }}")
    own = [row(n, name) for n, name in enumerate(names)]
    (folder / "run").mkdir(exist_ok=True)
    written = writer.write(folder / "run", lambda: records, ["caption"], settings, data=own)
    assert not (folder / "run" / "sidecars").exists()
    return dict(written.missing_sidecars)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "b.jpg", "c.txt"):
        (folder / name).write_text("an image")
    (tmp_path / "outside.jpg").write_text("an image")
    return folder


def test_existing_files_beside_the_images_are_left_alone(data: Path, tmp_path: Path):
    (data / "b.txt").write_text("mine")
    names = ["a.jpg", "a.png", "b.jpg", "c.txt", "../outside.jpg", "gone.jpg"]
    reasons = beside(tmp_path, list("ABCDEF"), names)
    assert (data / "a.txt").read_text() == "A"
    assert (data / "b.txt").read_text() == "mine"
    assert (data / "c.txt").read_text() == "an image"
    assert not (tmp_path / "outside.txt").exists()
    message = " ".join(reasons)
    assert sum(reasons.values()) == 5
    for part in ("is the sidecar of another image", "write.beside=replace", "is the image itself"):
        assert part in message
    assert "outside of the data's folder" in message
    assert "no such file" in message
    # A repeated run recognizes its own file.
    assert beside(tmp_path, ["A"], ["a.jpg"]) == {}
    assert list(beside(tmp_path, ["new"], ["a.jpg"])) != []


def test_replacing_never_follows_links(data: Path, tmp_path: Path):
    (tmp_path / "precious").write_text("mine")
    (data / "a.txt").symlink_to(tmp_path / "precious")
    (data / "b.txt").mkdir()
    (data / "a.txt.part").symlink_to(tmp_path / "precious")  # of a run that was killed, or hostile
    reasons = beside(tmp_path, ["A", "B"], ["a.jpg", "b.jpg"], "replace")
    assert (tmp_path / "precious").read_text() == "mine"
    assert (data / "a.txt").read_text() == "A"
    assert not (data / "a.txt").is_symlink()
    assert len(reasons) == 1
    assert not list(data.glob("*.part"))


def test_an_image_replaced_in_the_meantime_gets_no_caption(data: Path, tmp_path: Path):
    assert beside(tmp_path, ["A"], ["a.jpg"]) == {}
    records = [{**rows(["A"])[0], "input": {"image": "b.jpg"}, "stamp": "1 bytes of 2"}]
    row = Row(
        0,
        {"image": "b.jpg"},
        lambda: None,
        stamp="3 bytes of 4",
        find_image=lambda: data / "b.jpg",
        id="0.jpg",
    )
    settings = WriteSettings(sidecars="json", beside="new")
    written = writer.write(tmp_path, lambda: records, ["caption"], settings, data=[row])
    assert dict(written.missing_sidecars) == {"it was replaced after it was captioned": 1}
    assert not (data / "b.json").exists()
