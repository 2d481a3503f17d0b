import json
from pathlib import Path
from typing import Any

import pytest

from scalecap.journal import Journal, JournalError

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
        assert sorted(journal.indices) == [0, 1, 2]


def test_failed_and_changed_rows_are_not_done(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
        journal.append(record(1, failed=True))
    with Journal(tmp_path, CONFIG) as journal:
        assert journal.done(0, {"image": "0.png"})
        assert not journal.done(0, {"image": "other.png"})
        assert not journal.done(1, {"image": "1.png"})
        assert not journal.done(2, {"image": "2.png"})


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, cut: int):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
        journal.append(record(1, c="é"))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(tmp_path, CONFIG) as journal:
        assert list(journal.indices) == [0]
        journal.append(record(1, c="again"))
    with Journal(tmp_path, CONFIG) as journal:
        assert [each["columns"] for each in journal.records([0, 1])] == [{}, {"c": "again"}]


def test_a_damaged_line_costs_its_row_only(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        for index in range(3):
            journal.append(record(index))
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", lines[3]]))
    with Journal(tmp_path, CONFIG) as journal:
        assert sorted(journal.indices) == [0, 2]


OTHER = {"seed": 0, "model": {"name": "b"}}


def test_another_config_is_refused_with_the_difference(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
    with pytest.raises(JournalError, match=r"model\.name: was a, is b.*output=DIR.*resume=force"):
        Journal(tmp_path, OTHER)


def test_another_config_goes_on_by_force_and_it_stays_told(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0))
    with Journal(tmp_path, OTHER, force=True) as journal:
        assert (journal.changes, list(journal.indices)) == ("model.name: was a, is b", [0])
        journal.append(record(1))
    with Journal(tmp_path, OTHER) as journal:
        assert (journal.changes, list(journal.indices)) == ("model.name: was a, is b", [0, 1])
    with pytest.raises(JournalError, match=r"was b, is a"):
        Journal(tmp_path, CONFIG)


def test_a_journal_without_rows_takes_any_config(tmp_path: Path):
    for config in (CONFIG, OTHER):
        with Journal(tmp_path, config) as journal:
            assert journal.changes == ""
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path):
    with Journal(tmp_path, CONFIG), pytest.raises(JournalError, match="another run"):
        Journal(tmp_path, CONFIG)


def test_what_json_lacks_is_written_anyway(tmp_path: Path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(record(0, nan=float("nan"), half="\ud800", keys={1: (1, 2)}))
    line = (tmp_path / "journal.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["columns"] == {"nan": None, "half": "?", "keys": {"1": [1, 2]}}
