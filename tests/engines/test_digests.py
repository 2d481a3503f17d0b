import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scalecap.engines import digests
from scalecap.engines.digests import digest


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is large and old enough for its digest to be cached."""
    monkeypatch.setattr(digests, "_MIN_AGE", 0.0)
    monkeypatch.setattr(digests.time, "time", lambda: 1e12)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read."""
    names: list[str] = []
    whole = hashlib.file_digest

    def file_digest(stream: object, name: str) -> object:
        names.append(Path(stream.name).name)  # type: ignore[attr-defined]
        return whole(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    return names


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_large_file_is_read_once(large: Path, read: list[str]) -> None:
    assert {digest(large) for _ in range(3)} == {sha(large)}
    assert read == ["model.safetensors"]


def overwrite(path: Path) -> None:
    """Another byte in place; the size and the date stay."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"x")
    while path.stat().st_ctime_ns == status.st_ctime_ns:  # the file system's clock has coarse ticks
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file of the same size and date."""
    status = path.stat()
    path.rename(path.with_name("old"))
    path.write_bytes(b"y" * (1 << 20))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("change", [overwrite, replace, append], ids=lambda each: each.__name__)
def test_a_file_that_changed_is_read_again(
    large: Path, read: list[str], change: Callable[[Path], None]
) -> None:
    before = digest(large)
    change(large)
    assert digest(large) == sha(large) != before
    assert len(read) == 2


def test_an_equal_file_elsewhere_is_read(large: Path, tmp_path: Path, read: list[str]) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(large.read_bytes())
    assert digest(copy) == digest(large)
    assert len(read) == 2


def test_small_and_recently_changed_files_are_read_each_time(
    large: Path, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "config.json"
    small.write_text("{}")
    assert digest(small) == digest(small) == sha(small)
    monkeypatch.setattr(digests.time, "time", lambda: large.stat().st_mtime + 1)
    monkeypatch.setattr(digests, "_MIN_AGE", 60.0)
    assert digest(large) == digest(large) == sha(large)
    assert len(read) == 4


def test_a_damaged_cache_entry_is_ignored(large: Path, read: list[str]) -> None:
    digest(large)
    (kept,) = (Path.home() / ".cache" / "scalecap" / "digests").iterdir()
    kept.write_text("0" * 63)
    assert digest(large) == sha(large)
    assert len(read) == 2


def test_a_home_that_is_not_writable_is_not_an_error(large: Path, read: list[str]) -> None:
    Path.home().parent.mkdir(exist_ok=True)
    Path.home().write_text("a file, not a folder")
    assert digest(large) == digest(large) == sha(large)
    assert len(read) == 2


def test_a_digest_is_not_cached_if_the_file_changes_meanwhile(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashlib.file_digest

    def file_digest(stream: object, name: str) -> object:
        found = whole(stream, name)  # type: ignore[arg-type]
        append(large)
        return found

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    digest(large)
    assert not (Path.home() / ".cache").exists()
