import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from image_files import an_image
from runs import captions

from scalecap.config.exports import WriteSettings
from scalecap.data import groups, writer
from scalecap.rows import Row

ERROR = {"step": "image", "kind": "truncated", "message": "no end"}


def written(
    folder: Path, values: list[Any], failed: int = 0
) -> tuple[list[dict[str, Any]], datasets.Dataset]:
    """The rows as both files give them back; the last `failed` of them failed."""
    records = [
        {
            **{
                "index": n,
                "id": f"row {n}",
                "input": {"id": n, "image": f"{n}.png"},
                "columns": {"x": value},
            },
            **{"flags": {}, "error": None},
        }
        for n, value in enumerate(values)
    ]
    records += [{**records[0], "columns": {}, "flags": {"x": ["truncated"]}, "error": ERROR}] * failed
    writer.write(folder, lambda: iter(records), ["x"])
    loaded = datasets.load_dataset(str(folder / "dataset"), split="train", cache_dir=str(folder / "hf"))
    return captions(folder), loaded


@pytest.mark.parametrize(("formats", "reads"), [([], 1), (["parquet"], 2)])
def test_the_journal_is_read_once_and_again_for_all_exports(tmp_path: Path, formats: list[Any], reads: int):
    record = {"index": 0, "input": {}, "columns": {"x": "a"}, "flags": {}, "error": None}
    read: list[list[Any]] = []
    observed: list[Any] = []

    def records() -> Iterator[Any]:
        read.append([])
        for index in range(3):
            read[-1].append(index)
            yield {**record, "index": index}

    settings = WriteSettings(format=formats, sidecars="json" if formats else None)
    writer.write(tmp_path, records, ["x"], settings, observe=observed.append)
    assert read == [[0, 1, 2]] * reads
    assert [each["index"] for each in observed] == [0, 1, 2]


def test_rows_come_back_in_order_with_their_errors(tmp_path: Path):
    lines, loaded = written(tmp_path, ["a", "b"], failed=1)
    own = {"row_id": "row 0", "id": 0, "image": "0.png"}
    assert lines[0] == {**own, "x": "a", "flags": {}, "error": None}
    assert list(lines[0]) == ["row_id", "id", "image", "x", "flags", "error"]
    assert lines[2] == {**own, "x": None, "flags": {"x": ["truncated"]}, "error": ERROR}
    assert loaded["row_id"] == ["row 0", "row 1", "row 0"]
    assert loaded["x"] == ["a", "b", None]
    assert loaded["error"] == [None, None, ERROR]
    assert [json.loads(flags) for flags in loaded["flags"]] == [{}, {}, {"x": ["truncated"]}]


@pytest.mark.parametrize(
    "values",
    [
        [["a"], [], ["b", "c"]],
        [[{"text": "a", "p_yes": 0.5, "kept": True}], []],
        [[{"text": "a", "p_yes": None, "kept": True}], [{"text": "b", "p_yes": 1.0, "kept": False}]],
        [{"a": {"b": [1]}}, {"a": {"b": []}}],
        [1, 2.5, None],
        [None, None],
        [[], []],
        ["", "a\u2028b\nc"],
    ],
)
def test_values_keep_their_form(tmp_path: Path, values: list[Any]):
    lines, loaded = written(tmp_path, values, failed=1)
    assert [line["x"] for line in lines] == [*values, None]
    assert list(loaded["x"]) == [*values, None]


@pytest.mark.parametrize(
    "values",
    [
        *([1, "a"], ["a", ["b"]], [{}, {}], [[{}]], [{"a": 1}, [1]], [True, 3], [2**70, 1], [[1, "a"]]),
        [json.loads("[" * 98 + "1" + "]" * 98), []],
    ],
)
def test_values_without_a_common_type_are_json_text(tmp_path: Path, values: list[Any]):
    lines, loaded = written(tmp_path, values, failed=1)
    assert [line["x"] for line in lines] == [*values, None]
    assert [text and json.loads(text) for text in loaded["x"]] == [*values, None]


def test_keys_that_differ_from_row_to_row_are_json_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "MAX_FIELDS", 3)
    few = [{}, {"a": 1, "b": 2}, {"c": 3}]
    assert list(written(tmp_path, few)[1]["x"]) == [
        {"a": None, "b": None, "c": None},
        {"a": 1, "b": 2, "c": None},
        {"a": None, "b": None, "c": 3},
    ]
    for number, many in enumerate(([*few, {"d": 4}], [{"a": 1, "b": 2, "c": 3, "d": 4}])):
        (tmp_path / str(number)).mkdir()
        _, loaded = written(tmp_path / str(number), many)
        assert [json.loads(text) for text in loaded["x"]] == many


def test_types_are_common_to_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "GROUP_ROWS", 1)
    _, loaded = written(tmp_path / "", [[], ["a"], None], failed=1)
    assert list(loaded["x"]) == [[], ["a"], None, None]


@pytest.mark.parametrize("values", [[True, 3], [1, "a"], [1, [1]], [{"a": 1}, {"a": "b"}], [2**53 + 1, 0.5]])
def test_mixed_types_in_several_batches_are_json_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any]
):
    monkeypatch.setattr(writer, "GROUP_ROWS", 1)
    _, loaded = written(tmp_path, values)
    assert [json.loads(text) for text in loaded["x"]] == values


def test_writing_again_replaces_what_was_there(tmp_path: Path):
    written(tmp_path, ["a", "b"])
    lines, loaded = written(tmp_path, ["c"])
    assert len(lines) == len(loaded) == 1


def records(count: int) -> list[dict[str, Any]]:
    return [
        {
            **{"index": n, "id": str(n), "stamp": f"stamp {n}", "input": {"image": f"{n}.png"}},
            **{"columns": {"x": n}, "flags": {}, "error": None},
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("limit", [{"SHARD_ROWS": 4}, {"SHARD_BYTES": 500}])
def test_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]):
    monkeypatch.setattr(writer, "GROUP_ROWS", 2)
    for name, value in limit.items():
        monkeypatch.setattr(writer, name, value)
    rows = records(11)
    writer.write(tmp_path, lambda: rows, ["x"])
    names = sorted(path.name for path in (tmp_path / "dataset").glob("*.parquet"))
    assert len(names) >= 3
    assert names == [f"train-{n:05d}-of-{len(names):05d}.parquet" for n in range(len(names))]
    for path in (str(tmp_path / "dataset"), str(tmp_path / "dataset" / "train-*.parquet")):
        source = {"path": path} if path.endswith("dataset") else {"path": "parquet", "data_files": path}
        loaded = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "hf"))
        assert list(loaded["x"]) == list(range(11))
    assert not (tmp_path / "dataset.part").exists()


def test_features_are_those_of_the_rows(tmp_path: Path):
    rows = records(2)
    writer.write(tmp_path, lambda: rows, ["x"])
    loaded = datasets.load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "hf"))
    text = datasets.Value("string")
    assert loaded.features == {
        **{"row_id": text, "image": text, "x": datasets.Value("int64"), "flags": text},
        "error": {"step": text, "kind": text, "message": text},
    }


def test_a_column_is_left_out(tmp_path: Path):
    rows = records(2)
    writer.write(tmp_path, lambda: rows, ["x"], WriteSettings(image="none"))
    assert pq.read_schema(next((tmp_path / "dataset").glob("*.parquet"))).names == [
        "row_id",
        "x",
        "flags",
        "error",
    ]
    assert '"image"' in (tmp_path / "captions.jsonl").read_text()


def test_images_are_the_files_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def png(number: int) -> bytes:
        return an_image((number, 0, 0), (8, 8))

    def gone() -> bytes:
        raise OSError("gone")

    def row(number: int, read: Callable[[], bytes], stamp: str = "") -> Row:
        stamp = stamp or f"stamp {number}"
        return Row(number, {}, lambda: pytest.fail("opened"), stamp=stamp, read_image=read)

    monkeypatch.setattr(groups, "IMAGE_READERS", 3)
    monkeypatch.setattr(groups, "GROUP_BYTES", 2 * len(png(0)))
    rows = records(9)
    rows[2]["error"] = {"step": "image", "kind": "unreadable_image", "message": "broken"}
    rows[3]["error"] = {"step": "x", "kind": "Timeout", "message": "late"}
    del rows[5]  # it was in no journal
    own = [row(n, functools.partial(png, n)) for n in range(8) if n != 6]
    own.insert(6, row(6, gone))
    written = writer.write(tmp_path, lambda: rows, ["x"], WriteSettings(image="bytes"), data=own)
    assert dict(written.missing_images) == {"gone": 1, "the data now has another row at this index": 1}
    (path,) = (tmp_path / "dataset").glob("*.parquet")
    assert pq.read_metadata(path).num_row_groups >= 3
    loaded = datasets.load_dataset(str(tmp_path / "dataset"), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.features["image"] == datasets.Image()
    reds = [each and each.getpixel((0, 0))[0] for each in loaded["image"]]
    assert reds == [0, 1, None, 3, 4, None, 7, None], "the 6th is gone, and the data ends"
    whole = loaded.cast_column("image", datasets.Image(decode=False))[1]["image"]
    assert whole == {"bytes": png(1), "path": "1.png"}
