import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from scalecap.data import writer

ERROR = {"step": "image", "kind": "truncated", "message": "no end"}


def written(
    folder: Path, values: list[Any], failed: int = 0
) -> tuple[list[dict[str, Any]], datasets.Dataset]:
    """The rows as both files give them back; the last `failed` of them failed."""
    records = [
        {"input": {"id": n, "image": f"{n}.png"}, "columns": {"x": value}, "flags": {}, "error": None}
        for n, value in enumerate(values)
    ]
    records += [{**records[0], "columns": {}, "flags": {"x": ["truncated"]}, "error": ERROR}] * failed
    writer.write(folder, lambda: iter(records), ["x"])
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().strip().split("\n")]
    loaded = datasets.load_dataset(str(folder / "dataset"), split="train", cache_dir=str(folder / "hf"))
    return lines, loaded


def test_rows_come_back_in_order_with_their_errors(tmp_path: Path):
    lines, loaded = written(tmp_path, ["a", "b"], failed=1)
    assert lines[0] == {"id": 0, "image": "0.png", "x": "a", "flags": {}, "error": None}
    assert lines[2] == {"id": 0, "image": "0.png", "x": None, "flags": {"x": ["truncated"]}, "error": ERROR}
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
    "values", [[1, "a"], ["a", ["b"]], [{}, {}], [[{}]], [{"a": 1}, [1]], [True, 3], [2**70, 1], [[1, "a"]]]
)
def test_values_of_no_common_type_are_json_text(tmp_path: Path, values: list[Any]):
    lines, loaded = written(tmp_path, values, failed=1)
    assert [line["x"] for line in lines] == [*values, None]
    assert [text and json.loads(text) for text in loaded["x"]] == [*values, None]


def test_types_are_common_to_all_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "BATCH", 1)
    _, loaded = written(tmp_path / "", [[], ["a"], None], failed=1)
    assert list(loaded["x"]) == [[], ["a"], None, None]


@pytest.mark.parametrize("values", [[True, 3], [1, "a"], [1, [1]], [{"a": 1}, {"a": "b"}], [2**53 + 1, 0.5]])
def test_mixed_types_in_several_batches_are_json_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any]
):
    monkeypatch.setattr(writer, "BATCH", 1)
    _, loaded = written(tmp_path, values)
    assert [json.loads(text) for text in loaded["x"]] == values


def test_writing_again_replaces_what_was_there(tmp_path: Path):
    written(tmp_path, ["a", "b"])
    lines, loaded = written(tmp_path, ["c"])
    assert len(lines) == len(loaded) == 1
