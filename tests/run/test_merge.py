"""Shards: each row is in one of them, and merged they equal a single run."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image as Pillow
from runs import Command, Compose, Rows

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.shard import Shard, parse_shard
from scalecap.data.sources import open_source
from scalecap.engines.scripted import Scripted
from scalecap.report.run_page import write_report
from scalecap.rows import Row
from scalecap.run.merge import MergeError, merge
from scalecap.runner import run


@pytest.mark.parametrize("text", ["3/3", "0/0", "1", "a/b", "-1/2", "1/2/3", "٣/٤"])
def test_an_invalid_shard_gives_one_message(text: str):
    with pytest.raises(DataError, match="expected i/n"):
        parse_shard(text)


@pytest.mark.parametrize("limit", [None, 1, 10, 17])
@pytest.mark.parametrize("of", [1, 3, 20])
def test_shards_hold_each_row_once_and_are_equal_in_size(limit: int | None, of: int):
    whole = open_source(DataSettings(source="scenes", limit=limit))
    shards = [
        open_source(DataSettings(source="scenes", limit=limit, shard=str(Shard(number, of))))
        for number in range(of)
    ]
    indices = [[row.index for row in each] for each in shards]
    assert [each.total for each in shards] == list(map(len, indices))
    assert max(map(len, indices)) - min(map(len, indices)) <= 1
    assert sorted(index for each in indices for index in each) == [row.index for row in whole]


def test_a_shard_skips_finished_parts_and_marks_its_last_row_of_each():
    def parts(finished: Any) -> Any:
        for first in (0, 4, 8):
            if finished("stamp", first, 4):
                yield range(first, first + 4)
                continue
            for index in range(first, first + 4):
                part = (first, 4) if index == first + 3 else None
                yield Row(index, {}, lambda: None, part=part)
        raise DataError("it breaks")

    def done(stamp: str, first: int, rows: int | None = None, *, shard: Shard) -> int:
        assert shard == Shard(1, 3)
        return 4 if first == 4 else 0

    rows = Shard(1, 3).skip_finished(parts, done)
    found = [each if isinstance(each, range) else (each.index, each.part) for each in islice(rows, 3)]
    assert found == [(1, (0, 4)), range(4, 8, 3), (10, (8, 4))]
    with pytest.raises(DataError, match="it breaks"):
        next(rows)


@pytest.fixture
def shards(compose: Compose, rows: Rows, engines: dict[str, Scripted], tmp_path: Path) -> Callable[..., Path]:
    """Runs these shards of 7 rows, the fifth of which fails; returns the folder that holds them."""

    def made(*names: str, more: tuple[str, ...] = ()) -> Path:
        data = rows(7, broken=(4,))
        for name in names:
            words = ("data=jsonl", data, f"data.shard={name}", "report=false", *more)
            folder = tmp_path / "shards" / name.replace("/", "-of-")
            run(compose(*words, f"output={folder}"), engines=engines)
        return tmp_path / "shards"

    return made


def test_merged_shards_equal_the_run_of_one_process(
    shards: Callable[..., Path], compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    summary = merge([shards("0/3", "1/3", "2/3")], tmp_path / "whole", command="scalecap merge x")
    path = f"data.path={tmp_path / 'rows.jsonl'}"
    words = ("data=jsonl", path, "report=false", f"output={tmp_path / 'one'}")
    one = run(compose(*words), engines=engines)
    assert (summary.done, summary.failed, summary.exit_code) == (one.done, one.failed, 3) == (6, 1, 3)
    assert (summary.kept, summary.dropped, summary.flags) == (one.kept, one.dropped, one.flags)
    assert summary.promises == one.promises != {}
    assert summary.usage.total.requests == one.usage.total.requests
    single, joined = (tmp_path / name / "captions.jsonl" for name in ("one", "whole"))
    assert joined.read_bytes() == single.read_bytes()
    assert "Merged from 3 shards" in summary.screen()
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["rows"]["done"] == 6
    assert write_report(tmp_path / "whole").stat().st_size > 1000

    # It is a run like any other: the command without a shard resumes it.
    words = (*words[:-1], f"output={tmp_path / 'whole'}")
    assert run(compose(*words), engines=engines).reused == 6


def test_missing_duplicate_or_differently_configured_shards_are_refused(
    shards: Callable[..., Path], tmp_path: Path
):
    folder = shards("0/3", "2/3")
    to = tmp_path / "whole"
    with pytest.raises(MergeError, match=r"1 of 3 shards are missing: 1/3$"):
        merge([folder], to)
    assert not to.exists()
    with pytest.raises(MergeError, match="no-run holds no run"):
        merge([tmp_path / "no-run"], to)
    shards("1/3", more=("pipeline.steps.golden_sentences.threshold=0.7",))
    with pytest.raises(MergeError, match=r"different configs \(pipeline\.steps\.golden_sentences\.threshold"):
        merge([folder], to)
    shutil.rmtree(folder / "1-of-3")
    shards("1/3")
    again = tmp_path / "again"
    again.mkdir()
    (folder / "1-of-3" / "journal.jsonl").rename(again / "journal.jsonl")
    (again / "journal.jsonl").write_text((folder / "2-of-3" / "journal.jsonl").read_text())
    with pytest.raises(MergeError, match="shard 2/3 is repeated"):
        merge([folder, again], to)


def test_runs_that_are_not_shards_or_were_resumed_by_force_are_refused(
    shards: Callable[..., Path], compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    folder = shards("0/2", "1/2")
    shards("1/2", more=("seed=5", "resume=force"))
    with pytest.raises(MergeError, match=r"1-of-2 has rows of several configs"):
        merge([folder], tmp_path / "whole")
    run(compose("data.limit=1", f"output={tmp_path / 'alone'}"), engines=engines)
    with pytest.raises(MergeError, match="alone is not a shard"):
        merge([tmp_path / "alone"], tmp_path / "whole")
    with pytest.raises(MergeError, match=r"holds no run: there is no journal\.jsonl in it or below it"):
        merge([tmp_path / "nowhere"], tmp_path / "whole")


def test_an_unfinished_shard_is_named(shards: Callable[..., Path], tmp_path: Path):
    folder = shards("0/2", "1/2")
    journal = folder / "1-of-2" / "journal.jsonl"
    journal.write_text("".join(line for line in journal.open() if not line.startswith('{"complete"')))
    with pytest.raises(MergeError, match="not finished, resume first: 1/2"):
        merge([folder], tmp_path / "whole")


def test_each_journal_is_read_once(
    shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, opened, real = shards("0/2", "1/2"), Counter[str](), Path.open

    def counted(path: Path, *args: Any, **more: Any) -> Any:
        opened[str(path)] += 1
        return real(path, *args, **more)

    monkeypatch.setattr(Path, "open", counted)
    merge([folder], tmp_path / "whole")
    for name in ("shards/0-of-2", "shards/1-of-2"):
        assert opened[f"{tmp_path}/{name}/journal.jsonl"] == 3, (
            "to lock it, for its index, and for its 3 or 4 rows"
        )


def test_shards_of_data_that_changed_in_the_meantime_are_refused(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    (tmp_path / "photos").mkdir()
    for name in "bcde":
        Pillow.new("RGB", (30, 30), (ord(name), 0, 0)).save(tmp_path / "photos" / f"{name}.png")
    words = ("data=folder", f"data.path={tmp_path}/photos", "report=false")
    run(compose(*words, "data.shard=0/2", f"output={tmp_path}/shards/0"), engines=engines)
    Pillow.new("RGB", (30, 30)).save(tmp_path / "photos" / "a.png")
    run(compose(*words, "data.shard=1/2", f"output={tmp_path}/shards/1"), engines=engines)
    with pytest.raises(MergeError, match=r"row 1 of .*shards/1 has the id 'b\.png' of a row before it"):
        merge([tmp_path / "shards"], tmp_path / "whole")


def test_a_damaged_journal_is_named(shards: Callable[..., Path], tmp_path: Path):
    folder = shards("0/2", "1/2")
    journal = folder / "1-of-2" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith(b'{"index": 3,'))
    lines[at] = b"\xff" * 40 + b"\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(MergeError, match=r"row 3 is missing in .*1-of-2, whose journal is damaged"):
        merge([folder], tmp_path / "whole")


@pytest.mark.parametrize("form", ["none", "bytes"])
def test_images_are_written_as_the_shards_were_configured(
    rows: Rows, typed: Command, tmp_path: Path, form: str
):
    data = rows(3)
    for number in (0, 1):
        words = ("data=jsonl", data, f"data.shard={number}/2", f"write.image={form}")
        assert typed(*words, f"output=shards/{number}") == 0
    merge([tmp_path / "shards"], tmp_path / "whole")
    loaded = datasets.load_dataset(
        str(tmp_path / "whole" / "dataset"), split="train", cache_dir=str(tmp_path)
    )
    if form == "none":
        assert "image" not in loaded.column_names
    else:
        assert [each["image"].size for each in loaded] == [(30, 30)] * 3


def test_shards_with_other_limits_or_grown_data_are_refused(shards: Callable[..., Path], tmp_path: Path):
    folder = shards("0/2")
    shards("1/2", more=("data.limit=2",))
    with pytest.raises(MergeError, match=r"these have 4, 1: did data\.limit differ"):
        merge([folder], tmp_path / "whole")
    shards("1/2", more=("data.limit=4",))
    journal = folder / "1-of-2" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    # Killed while it was resumed with more rows.
    journal.write_text("".join(lines[:-1]) if lines[-1].startswith('{"complete"') else "")
    with pytest.raises(MergeError, match="not finished, resume first: 1/2"):
        merge([folder], tmp_path / "whole")


def test_rows_removed_from_the_data_do_not_come_back(shards: Callable[..., Path], tmp_path: Path):
    shards("0/2", "1/2")
    folder = shards("0/2", "1/2", more=("data.limit=3",))
    summary = merge([folder], tmp_path / "whole")
    assert (summary.done, summary.failed) == (3, 0)


def test_the_command_reports_an_error_in_one_line(
    shards: Callable[..., Path], command: Command, tmp_path: Path, capsys: Any
):
    folder = shards("0/2", "1/2")
    for code in (3, 1):  # a row failed; there is a run
        assert command("merge", folder, "--to", tmp_path / "whole") == code
    captured = capsys.readouterr()
    assert "6 rows captioned, 1 failed" in captured.out
    assert "already holds a run; give another --to=DIR" in captured.err
