import pickle  # noqa: TID251 - rows are pickled for other processes
from pathlib import Path
from typing import Any

import fsspec
import pytest

from scalecap.data import DataError
from scalecap.data.files import File, find_files
from scalecap.rows import RowError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "folder.tar").mkdir()
    for name in ("08.tar", "09.tar", "10.tar", "deep/11.tar", "note.txt", "._08.tar", ".cache/12.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0123456789")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{08..10}.tar", ["08.tar", "09.tar", "10.tar"]),
        ("{8..10}.tar", ["8.tar", "9.tar", "10.tar"]),
        ("{10,08}.tar", ["10.tar", "08.tar"]),
        ("{0,1}{8..9}.tar", ["08.tar", "09.tar", "18.tar", "19.tar"]),
        ("*.tar", ["08.tar", "09.tar", "10.tar"]),
        ("0?.tar", ["08.tar", "09.tar"]),
        ("**/*.tar", ["08.tar", "09.tar", "10.tar", "deep/11.tar"]),
        (".", ["08.tar", "09.tar", "10.tar", "deep/11.tar"]),
        ("{x}.tar", ["{x}.tar"]),
        ("one.tar", ["one.tar"]),
    ],
)
def test_patterns(shards: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]) -> None:
    monkeypatch.chdir(shards)
    found = find_files(pattern, ".tar")
    assert [file.name for file in found] == names, "as they were typed"
    assert [file.url for file in found] == [str(shards / name) for name in names], "wherever it is read"


def test_a_remote_pattern() -> None:
    for number in range(3):
        with fsspec.open(f"memory://remote/{number}.tar", "wb") as file:
            file.write(b"0123456789")
    found = find_files("memory://remote/*.tar", ".tar")
    assert [file.name.rpartition("/")[2] for file in found] == ["0.tar", "1.tar", "2.tar"]
    assert found[1].read(2, 3) == b"234"
    assert find_files("memory://remote/{0..1}.tar", ".tar")[1].read(8, 9) == b"89"
    size, stamp = found[0].stat()
    assert size == 10
    with fsspec.open("memory://remote/0.tar", "wb") as file:
        file.write(b"9876543210")
    assert found[0].stat()[1] != stamp


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("nothing-*.tar", "no file matches data.path='nothing"),
        (".", "no .tar file below '.'"),
        ("nowhere://x/y.tar", "can't read 'nowhere://x/y.tar'"),
        ("{0..99999999}.tar", "^{0..99999999} expands to more than 1,000,000 files"),
    ],
)
def test_patterns_without_readable_files_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_files(pattern, ".tar")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://me:secret@host/a.tar?X-Signature=1", "https://host/a.tar"),
        ("https://token@host/a.tar", "https://host/a.tar"),
        ("simplecache::https://host/a.tar?X-Signature=1", "simplecache::https://host/a.tar"),
        ("https://host/a@b:c.tar", "https://host/a@b:c.tar"),
    ],
)
def test_names_hold_no_secrets(url: str, name: str) -> None:
    pytest.importorskip("aiohttp", reason="needs what fsspec reads http with")
    assert find_files(url, ".tar")[0] == File(url, name)


@pytest.mark.parametrize("do", [lambda file: file.stat(), lambda file: file.read(0, 1)])
@pytest.mark.parametrize("url", ["/nowhere/a.tar", "memory://nowhere/a.tar"])
def test_a_missing_file_is_an_error_of_its_rows(url: str, do: Any) -> None:
    with pytest.raises(RowError, match=r"no such file: 'a\.tar'") as caught:
        do(File(url, "a.tar"))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.kind, str(again)) == (caught.value.kind, str(caught.value)) == ("missing_file", str(again))
