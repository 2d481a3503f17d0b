import errno
import fcntl
import json
import os
import signal
import sys
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

import scalecap.run.journal as journal_module
from scalecap.data.shard import Shard
from scalecap.rows import Row
from scalecap.run.journal import Entries, Entry, Journal, JournalError

CONFIG = {"seed": 0, "model": {"name": "a"}}


def record(index: int, *, failed: bool = False, **columns: Any) -> dict[str, Any]:
    error = {"step": "x", "kind": "k", "message": "m"} if failed else None
    return {
        "index": index,
        "input": {"image": f"{index}.png"},
        "columns": columns,
        "flags": {},
        "error": error,
    }


def test_rows_come_back_by_index_and_the_last_record_counts(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        for each in (record(2, c="two"), record(0, failed=True), record(1), record(0, c="now")):
            journal.append(each)
    with Journal(tmp_path, CONFIG) as journal:
        assert [each["columns"] for each in journal.records([0, 1, 2, 7])] == [{"c": "now"}, {}, {"c": "two"}]
        assert list(journal.entries) == [0, 1, 2]


def row(index: int, image: str | None = None, stamp: str = "") -> Row:
    return Row(index, {"image": image or f"{index}.png"}, lambda: pytest.fail("opened"), stamp=stamp)


def test_a_row_is_done_as_long_as_its_input_and_image_are_the_same(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0) | {"stamp": "then"})
        journal.append(record(1, failed=True) | {"stamp": "then"})
        journal.append(record(2) | {"stamp": ""})
    with Journal(tmp_path, CONFIG) as journal:
        assert (len(journal.entries), journal.entries.done) == (3, 2)
        assert journal.state(row(0, stamp="then")) == "done"
        assert journal.state(row(0, stamp="now")) == "changed"
        assert journal.state(row(0, "other.png", "then")) == "changed"
        assert journal.state(row(0)) == "done"  # an image that is gone costs no finished row
        assert journal.state(row(1, stamp="then")) == "failed"
        assert journal.state(row(2, stamp="now")) == "done"
        assert journal.state(row(3, stamp="then")) == "new"


def test_what_failed_and_then_succeeded_counts_as_done(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        for each in (record(5000, failed=True), record(5000), record(2), record(2, failed=True)):
            journal.append(each)
        assert (list(journal.entries), journal.entries.done) == ([2, 5000], 1)


def test_the_number_of_rows_is_recorded_at_the_end(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
        assert journal.complete is None
        journal.finish(1)
        journal.finish(1)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 3
    with Journal(tmp_path, CONFIG) as journal:
        assert journal.complete == 1


def test_a_row_that_cannot_be_written_leaves_earlier_rows_intact(tmp_path: Path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
        room = journal.path.stat().st_size + 100
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(
                JournalError, match=r"can't write to .*journal\.jsonl: .* 1 rows in it are kept"
            ):
                journal.append(record(1, c="x" * 1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.append(record(2))
        assert [each["index"] for each in journal.records([0, 1, 2])] == [0, 2]
    with Journal(tmp_path, CONFIG) as journal:
        assert list(journal.entries) == [0, 2]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
        journal.append(record(1, c="é"))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path, CONFIG) as journal:
        assert list(journal.entries) == [0]
        journal.append(record(1, c="again"))
    with Journal(tmp_path, CONFIG) as journal:
        assert [each["columns"] for each in journal.records([0, 1])] == [{}, {"c": "again"}]


def test_a_damaged_line_loses_only_its_row(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        for index in range(3):
            journal.append(record(index))
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", lines[3]]))
    with Journal(tmp_path, CONFIG) as journal:
        assert list(journal.entries) == [0, 2]


OTHER = {"seed": 0, "model": {"name": "b"}}


def test_another_config_is_refused_with_the_difference(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
    with pytest.raises(JournalError, match=r"model\.name: was a, is b.*output=DIR.*resume=force"):
        Journal(tmp_path, OTHER)


def test_force_resumes_with_another_config_and_the_change_stays_recorded(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
    with Journal(tmp_path, OTHER, force=True) as journal:
        assert (journal.changes, list(journal.entries)) == ("model.name: was a, is b", [0])
        journal.append(record(1))
    with Journal(tmp_path, OTHER) as journal:
        assert (journal.changes, list(journal.entries)) == ("model.name: was a, is b", [0, 1])
    with pytest.raises(JournalError, match=r"was b, is a"):
        Journal(tmp_path, CONFIG)


def test_a_folder_that_holds_no_run_is_left_as_it_is(tmp_path: Path):
    with pytest.raises(JournalError, match=r"holds no run: there is no journal\.jsonl"):
        Journal(tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_an_empty_journal_holds_no_run(tmp_path: Path):
    (tmp_path / "journal.jsonl").write_text('{"config": {"se')  # killed at its first line
    with pytest.raises(JournalError, match=r"holds no run: journal\.jsonl is empty"):
        Journal(tmp_path, None)


def test_a_journal_records_the_folder_and_config_it_was_started_with(tmp_path: Path):
    folder = tmp_path / "new" / "run"
    with Journal(folder, CONFIG, cwd="/elsewhere") as journal:
        journal.append(record(0, caption="Né à São Paulo"))
    before = (folder / "journal.jsonl").read_bytes()
    assert "Né à São Paulo".encode() in before
    with Journal(folder, None) as journal:
        assert (journal.cwd, journal.config, journal.changes) == ("/elsewhere", CONFIG, "")
    assert (folder / "journal.jsonl").read_bytes() == before


def test_a_journal_without_rows_takes_any_config(tmp_path: Path):
    for config in (CONFIG, OTHER):
        with Journal(tmp_path, config) as journal:
            assert journal.changes == ""
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path):
    with Journal(tmp_path, CONFIG), pytest.raises(JournalError, match="another run"):
        Journal(tmp_path, CONFIG)


def test_values_that_json_lacks_are_written_anyway(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0, nan=float("nan"), half="\ud800", keys={1: (1, 2)}))
    line = (tmp_path / "journal.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["columns"] == {"nan": None, "half": "?", "keys": {"1": [1, 2]}}


def done(
    journal: Journal, index: int, stamp: str = "a", part: Any = None, error: Any = None, edits: Any = None
) -> None:
    record = {"index": index, "stamp": stamp, "input": {}, "columns": {}, "flags": {}, "error": error}
    journal.append({**record, **({"part": part} if part else {}), **({"edits": edits} if edits else {})})


def test_the_end_is_noted_when_the_data_or_a_row_changed(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        done(journal, 0)
        journal.finish(1)
        done(journal, 0)
        assert not journal.ended, "a row was done since"
        journal.finish(1)
        journal.finish(2)
        journal.finish(2)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["complete"] for line in lines if '"complete"' in line] == [1, 1, 2]


def test_a_part_is_finished_when_all_its_rows_are(tmp_path: Path):
    with Journal(tmp_path, {}) as journal:
        done(journal, 2, part=(1, 2))
        assert journal.finished("a", 1) == 0, "a row is not done"
        done(journal, 1, error={"step": "x", "kind": "y", "message": "z"})
        assert journal.finished("a", 1) == 0, "it failed"
        done(journal, 1)
        assert journal.finished("a", 1) == 2
        assert journal.finished("b", 1) == 0, "the part has changed"
        assert journal.finished("a", 1, 3) == 0, "the data now has one row more"
        assert journal.finished("a", 2, 1) == 1
        assert journal.finished("a", 0) == 0, "no part begins there"
    with Journal(tmp_path, {}) as journal:
        assert journal.finished("a", 1) == 2, "read back from the file"
        done(journal, 1, stamp="b")
        assert journal.finished("a", 1) == journal.finished("b", 1) == 0, "half of it has another stamp"


def test_a_replaced_part_is_finished_only_at_its_own_end(tmp_path: Path):
    with Journal(tmp_path, {}) as journal:
        done(journal, 0)
        done(journal, 1, part=(0, 2))
        assert journal.finished("a", 0) == 2
        for index in range(2):  # it now has three rows, and the run was stopped before the last
            done(journal, index, stamp="b")
        assert journal.finished("b", 0) == 0
    with Journal(tmp_path, {}) as journal:
        assert journal.finished("b", 0) == 0, "read back from the file"
        done(journal, 2, stamp="b", part=(0, 3))
        assert journal.finished("b", 0) == 3


def test_a_part_with_an_edited_row_is_read_again(tmp_path: Path):
    with Journal(tmp_path, {}) as journal:
        done(journal, 0, edits={"x": "by hand"})
        done(journal, 1)
        assert journal.finished("a", 0, 2) == 0, "its edits may have been taken back"
    with Journal(tmp_path, {}) as journal:
        assert journal.finished("a", 0, 2) == 0, "read back from the file"
        done(journal, 0)
        assert journal.finished("a", 0, 2) == 2


def test_a_part_is_finished_for_a_shard_that_has_its_rows(tmp_path: Path):
    shard = Shard(1, 3)
    with Journal(tmp_path, {"data": {"shard": "1/3"}}) as journal:
        for index in (1, 4):
            done(journal, index, part=(0, 6) if index == 4 else None)
        assert journal.finished("a", 0, shard=shard) == 6
        assert journal.finished("a", 0, 8, shard=shard) == 0, "the data has one more of its rows"
        assert journal.finished("a", 0) == 0, "without the shard, rows are missing"


@pytest.mark.parametrize("of", [1, 2, 7])
def test_a_shard_of_many_rows_takes_the_memory_of_its_own(of: int):
    entries = Entries(of)
    indices = range(of - 1, 30_000 * of, of)
    for number, index in enumerate(indices):
        entries.put(index, Entry(number + 1, number % 2 == 0, b"digest..", b"stamp..."))
    assert (len(entries), entries.done) == (30_000, 15_000)
    assert list(entries) == list(indices)
    assert entries.get(indices[7]) == Entry(8, False, b"digest..", b"stamp...")
    assert entries.get(indices[7] + of * 30_000) is None
    assert sum(map(len, entries._pages.values())) < 30_000 * 25 + 4096 * 25
    entries.put(0, Entry(1, True, bytes(8), bytes(8)))
    assert next(iter(entries)) == 0, "a row of another shard, in its place"


def test_a_shard_that_resumes_takes_the_memory_of_its_own_rows(tmp_path: Path):
    config, indices = CONFIG | {"data": {"shard": "0/1000"}}, range(0, 10_000, 1000)
    with Journal(tmp_path, config) as journal:
        for index in indices:
            journal.append(record(index))
    with Journal(tmp_path, config) as journal:
        assert list(journal.entries) == list(indices)
        assert len(journal.entries._pages) == 1


def test_a_file_system_without_locks_is_noted_and_the_run_continues(
    tmp_path: Path, monkeypatch: Any, caplog: Any
):
    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    for code in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
        monkeypatch.setattr(fcntl, "flock", flock)
        caplog.clear()
        with Journal(tmp_path / str(code), CONFIG) as journal:
            journal.append(record(0))
        with Journal(tmp_path / str(code), CONFIG) as journal:
            assert journal.state(row(0)) == "done"
        assert f"its file system does not support it ({os.strerror(code)})" in caplog.text
        assert len(caplog.records) == 2


def test_a_system_without_locks_gets_a_hint_to_use_wsl(tmp_path: Path, monkeypatch: Any, caplog: Any):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
    assert "on Windows, run it in WSL" in caplog.text
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("call", ["flock", "read"])
def test_a_journal_that_cannot_be_read_is_closed_and_reported(tmp_path: Path, monkeypatch: Any, call: str):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))

    def stale(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        if call == "flock":
            patch.setattr(fcntl, "flock", stale)
        else:
            patch.setattr(Journal, "_replay", stale)
        with pytest.raises(JournalError, match=r"can't read .*journal\.jsonl: Stale file handle"):
            Journal(tmp_path, CONFIG)
    opened = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    assert str(tmp_path / "journal.jsonl") not in opened
    with Journal(tmp_path, CONFIG) as journal:
        assert journal.state(row(0)) == "done"


class Gone:
    """A journal's file on a disk that went away."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, _: bytes) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    truncate = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_disk_that_goes_away_gives_one_message(tmp_path: Path):
    journal = Journal(tmp_path, CONFIG)
    journal.append(record(0))
    journal._file = Gone(journal._file)  # type: ignore[assignment]
    with pytest.raises(
        JournalError, match=r"can't write to .*: Stale file handle\. The 1 rows in it are kept"
    ):
        journal.append(record(1))
    journal._file.close()


def test_rows_are_synced_in_the_background_and_a_failure_is_raised_with_the_next_row(
    tmp_path: Path, monkeypatch: Any
):
    begun, released, broken = threading.Event(), threading.Event(), False

    def slow(file: int) -> None:
        begun.set()
        released.wait(60)
        if broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal_module, "SYNC_SECONDS", -1.0)
    monkeypatch.setattr(os, "fsync", slow)
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
        assert begun.wait(60)
        journal.append(record(1))  # while the disk is still busy
        assert not released.is_set()
        released.set()
    assert journal.state(row(1)) == "done"
    broken = True
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(2))
        assert journal._syncing
        wait([journal._syncing])
        with pytest.raises(
            JournalError, match=r"can't write to .*: Input/output error\. The 4 rows in it are"
        ):
            journal.append(record(3))
        monkeypatch.undo()
    with Journal(tmp_path, CONFIG) as journal:
        assert [journal.state(row(index)) for index in range(4)] == ["done"] * 4
