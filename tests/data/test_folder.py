from pathlib import Path

import pytest
from image_files import an_image

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.sources import open_source
from scalecap.rows import Row, RowError


def rows(path: Path, **settings: object) -> list[Row]:
    return list(open_source(DataSettings(source="folder", path=str(path), **settings)))  # type: ignore[arg-type]


def test_images_below_the_folder_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for name in ("b.png", "a/2.JPG", "a/1.webp", "写真 é.png", "notes.txt", ".hidden.png", ".git/x.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(an_image())
    source = open_source(DataSettings(source="folder", path=str(folder), image="photo"))
    assert source.total == 4
    assert source.columns == {"photo": "text"}
    found = list(source)
    assert [row.columns["photo"] for row in found] == ["a/1.webp", "a/2.JPG", "b.png", "写真 é.png"]
    assert [row.index for row in found] == [0, 1, 2, 3]
    assert all(row.open_image().pixels.size == (40, 30) for row in found)
    assert len(rows(folder, limit=3)) == 3


def test_links_to_files_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(an_image())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop").symlink_to(folder)
    (folder / "loop.png").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    gone, link, endless = rows(folder)
    with pytest.raises(RowError, match=r"round\.png"):
        endless.open_image()
    assert link.columns == {"image": "link.png"}
    assert link.open_image().pixels.size == (40, 30)
    with pytest.raises(RowError, match=r"gone\.png") as caught:
        gone.open_image()
    assert caught.value.kind == "missing_file"


def test_a_file_name_that_is_not_utf_8_can_be_opened_and_written(tmp_path: Path) -> None:
    try:
        (tmp_path / "a\udcff.png").write_bytes(an_image())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (row,) = rows(tmp_path)
    assert row.columns == {"image": "a?.png"}
    assert row.open_image().pixels.size == (40, 30)


def test_a_locked_folder_is_a_row_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    scan = os.scandir
    (tmp_path / "a.png").write_bytes(an_image())
    (tmp_path / "b").mkdir()

    def refuse(path: Path) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    good, locked = rows(tmp_path)
    assert good.error is None
    assert locked.error is not None
    assert locked.error.kind == "unreadable_folder"


@pytest.mark.parametrize(
    ("name", "words"),
    [("none", "does not exist"), ("a.txt", "is a file"), ("empty", r"no image below .*\.png")],
)
def test_nothing_to_read(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        rows(tmp_path / name)
