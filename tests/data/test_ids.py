"""Every row has an id that no other row of its data has."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from image_files import an_image, tar

from scalecap.config.settings import DataSettings
from scalecap.data import DataError, hub, seen
from scalecap.data.seen import Seen
from scalecap.data.sources import open_source
from scalecap.rows import Row


def ids(source: str, path: Path | str, **more: Any) -> list[str]:
    return [row.id for row in open_source(DataSettings(source=source, path=str(path), **more))]


def test_ids_of_a_folder_are_its_paths(tmp_path: Path):
    (tmp_path / "b").mkdir()
    for name in ("a.png", "b/c d.png", "b/é.png", "b\\udcff.png"):
        (tmp_path / name).write_bytes(an_image())
    (tmp_path / os.fsdecode(b"b\xff.png")).write_bytes(an_image())
    assert ids("folder", tmp_path) == ["a.png", "b/c d.png", "b/é.png", "b\\\\udcff.png", "b\\udcff.png"]


def test_the_id_of_a_sample_is_its_shard_and_key(tmp_path: Path):
    png = an_image()
    members = [("a.png", png), ("x/b.png", png), ("a.png", png), ("a#2.png", png), ("a.png", png)]
    (tmp_path / "0.tar").write_bytes(tar(*members, ("c.json", b"{}")))
    (tmp_path / "1#.tar").write_bytes(tar(("a.png", png)))
    (tmp_path / "2.tar").write_bytes(b"\x1f\x8b no tar")
    found = [each.removeprefix(f"{tmp_path}/") for each in ids("webdataset", f"{tmp_path}/*.tar")]
    assert found == [
        "0.tar#a",
        "0.tar#x/b",
        "0.tar#a#2",
        "0.tar#a#2#2",
        "0.tar#a#3",
        "0.tar#c",
        "1\\#.tar#a",
        "2.tar",
    ]


def test_a_file_listed_twice_gives_different_ids(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar(("k.png", an_image())))
    found = ids("webdataset", f"{tmp_path}/{{a,a}}.tar")
    assert [each.removeprefix(f"{tmp_path}/") for each in found] == ["a.tar#k", "a.tar (2)#k"]


def held(count: int, **more: list[Any]) -> datasets.Dataset:
    """A data set of images without paths, each redder than the one before."""
    cells = [{"bytes": an_image((number, 0, 0)), "path": None} for number in range(count)]
    features = datasets.Features({"image": datasets.Image()}) | {
        name: datasets.Value("string" if isinstance(values[0], str) else "int64")
        for name, values in more.items()
    }
    return datasets.Dataset.from_dict({"image": cells, **more}, features=datasets.Features(features))


def test_the_id_of_a_parquet_row_is_its_file_and_position(tmp_path: Path):
    for name in ("a", "b"):
        held(2).to_parquet(tmp_path / f"{name}.parquet", batch_size=1)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 broken PAR1")
    found = [each.removeprefix(f"{tmp_path}/") for each in ids("parquet", f"{tmp_path}/*.parquet")]
    assert found == ["a.parquet#0", "a.parquet#1", "b.parquet#0", "b.parquet#1", "c.parquet#"]


def test_the_id_defaults_to_the_index(write_jsonl: Callable[..., Path], tmp_path: Path):
    path = write_jsonl({"image": "red.png"}, "broken", "", {"image": "red.png"})
    assert ids("jsonl", path) == ["0", "1", "2"]
    assert ids("scenes", "", count=2) == ["0", "1"]
    held(3).to_parquet(tmp_path / "a.parquet")
    for streaming in (False, True):
        assert ids("hub", tmp_path / "a.parquet", streaming=streaming) == ["0", "1", "2"]


@pytest.mark.parametrize("shard", [None, "1/2"])
def test_a_column_may_hold_the_ids(write_jsonl: Callable[..., Path], shard: str | None):
    names = ["x", 7, "x", None, "", True, {"a": 1}, "#4", "last"]
    path = write_jsonl(*({"image": "red.png", "sku": each} for each in names), {"image": "red.png"}, "broken")
    found = list(open_source(DataSettings("jsonl", str(path), id="sku", shard=shard)))
    whole = ["x", "7", "x#2", "#3", "#4", "#5", "#6", "#4#7", "last", "#9", "#10"]
    assert [row.id for row in found] == whole[1 if shard else 0 :: 2 if shard else 1]
    kinds = [row.error and row.error.kind for row in found]
    bad = [None, None, "repeated_id", *["no_id"] * 4, "repeated_id", None, "no_id", "invalid_json"]
    assert kinds == bad[1 if shard else 0 :: 2 if shard else 1]
    if not shard:
        assert str(found[2].error).startswith(
            "row 2 repeats the id of an earlier row: 'sku' is 'x'; expected unique"
        )
        assert str(found[3].error).startswith("row 3 has no id: 'sku' is None; expected unique")


def test_a_missing_column_is_named(write_jsonl: Callable[..., Path]):
    with pytest.raises(DataError, match=r"data\.id=sku: the data has no such column; .*skus"):
        open_source(DataSettings("jsonl", str(write_jsonl({"image": "red.png", "skus": 1})), id="sku"))


def test_ids_of_finished_parts_are_read_again(tmp_path: Path):
    held(4, sku=["a", "b", "a", "c"]).to_parquet(tmp_path / "0.parquet", batch_size=2)
    source = open_source(DataSettings("parquet", str(tmp_path / "0.parquet"), id="sku"))
    rows = [each for each in source.unfinished(lambda *_, **__: 2) if isinstance(each, Row)]
    assert [row.id for row in rows] == ["a", "b", "a#2", "c"], "though every part counts as finished"


def test_duplicates_are_found_in_little_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(seen, "MAX_RECENT", 64)
    found, numbers = Seen(), [number * number % 9973 for number in range(20_000)]
    new = {number for number in numbers if found.add(str(number))}
    assert new == set(numbers)
    assert not any(found.add(str(number)) for number in numbers)
    assert sum(each.nbytes for each in found._packed) <= 8 * len(new)
    assert len(found._packed) <= 12


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("limit", [None, 1, 7])
def test_a_shard_of_a_hub_data_set_reads_no_image_of_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool, limit: int | None
):
    held(10).save_to_disk(tmp_path / "saved") if not streaming else held(10).to_parquet(tmp_path / "saved")
    if streaming:
        (tmp_path / "saved").rename(tmp_path / "saved.parquet")
    path = str(tmp_path / ("saved.parquet" if streaming else "saved"))
    looked: list[Any] = []
    monkeypatch.setattr(hub, "image_stamp", lambda cell, **_: str(looked.append(cell)))
    read: list[Any] = []
    checked = hub._checked

    def counted(rows: Iterator[Any], path: str) -> Iterator[Any]:
        return (read.append(row) or row for row in checked(rows, path))

    monkeypatch.setattr(hub, "_checked", counted)
    for number in range(3):
        looked.clear(), read.clear()
        source = open_source(DataSettings("hub", path, shard=f"{number}/3", limit=limit, streaming=streaming))
        own = range(number, limit or 10, 3)
        found = list(source)
        assert [row.index for row in found] == list(own)
        assert [row.open_image().pixels.getpixel((0, 0))[0] for row in found] == list(own)
        assert len(looked) <= len(own) + 1, "one may be beyond the limit"
        if not streaming:
            assert len(read) <= len(own) + 1
            assert source.total == len(own)
    assert [row.index for row in islice(source, 1)] == list(own)[:1], "it can be read again"
