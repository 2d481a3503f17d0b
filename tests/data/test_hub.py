import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
from image_files import an_image, tar
from processes import python

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.sources import open_source
from scalecap.rows import RowError

QUESTION = {"question": "Is there a dog?", "answer": "yes", "category": "entity"}
COLUMNS = {
    "image": "any",
    "questions": "any",
    "sonnet": "text",
    "pg-captioner": "text",
    "gpt-4o": "text",
    "tags": "texts",
    "score": "number",
}


def bench(images: list[dict[str, Any]]) -> Any:
    """A data set with the columns of CapsBench and two more."""
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "questions": [{"question": text, "answer": text, "category": text}],
            "sonnet": text,
            "pg-captioner": text,
            "gpt-4o": text,
            "tags": [text],
            "score": datasets.Value("float32"),
        }
    )
    rows = [
        {
            "image": each,
            "questions": [QUESTION] * 2,
            "sonnet": f"caption {number}",
            "pg-captioner": "b",
            "gpt-4o": "c",
            "tags": ["x"],
            "score": 0.5,
        }
        for number, each in enumerate(images)
    ]
    return datasets.Dataset.from_list(rows, features=features)


IMAGES = [
    {"bytes": an_image("red"), "path": "0.png"},
    {"bytes": b"junk", "path": "1.png"},
    {"bytes": an_image("blue"), "path": None},
]


def parquet(folder: Path) -> str:
    (folder / "data").mkdir()
    bench(IMAGES).to_parquet(folder / "data" / "train-00000.parquet")
    return str(folder / "data")


def parquet_file(folder: Path) -> str:
    return parquet(folder) + "/train-00000.parquet"


def saved(folder: Path) -> str:
    bench(IMAGES).save_to_disk(folder / "saved")
    return str(folder / "saved")


def saved_splits(folder: Path) -> str:
    datasets.DatasetDict({"train": bench(IMAGES), "test": bench(IMAGES[:1])}).save_to_disk(folder / "all")
    return str(folder / "all")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def settings(path: str, **more: Any) -> DataSettings:
    return DataSettings(source="hub", path=path, **more)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [parquet, parquet_file, saved, saved_splits])
def test_a_local_set_and_its_corrupt_image(
    tmp_path: Path, write: Callable[[Path], str], streaming: bool
) -> None:
    source = open_source(settings(write(tmp_path), streaming=streaming))
    assert source.columns == COLUMNS
    first, bad, last = source
    assert first.columns == {
        "image": {"path": "0.png"},
        "questions": [QUESTION] * 2,
        "sonnet": "caption 0",
        "pg-captioner": "b",
        "gpt-4o": "c",
        "tags": ["x"],
        "score": 0.5,
    }
    json.dumps(dict(first.columns), allow_nan=False)
    assert first.open_image().pixels.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(RowError, match=r"1\.png") as caught:
        bad.open_image()
    assert caught.value.kind == "unreadable_image"
    assert last.columns["image"] is None
    assert last.open_image().pixels.getpixel((0, 0)) == (0, 0, 255)
    if not streaming:
        assert source.total == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_limit_and_split(tmp_path: Path, streaming: bool) -> None:
    path = saved_splits(tmp_path)
    assert len(list(open_source(settings(path, limit=2, streaming=streaming)))) == 2
    assert len(list(open_source(settings(path, split="test", streaming=streaming)))) == 1
    assert len(list(open_source(settings(parquet(tmp_path), limit=2, streaming=streaming)))) == 2


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path: Path, streaming: bool) -> None:
    members = []
    for key, content in (("a", an_image()), ("b", b"junk"), ("c", an_image("blue"))):
        members += [(f"{key}.png", content), (f"{key}.txt", b"hello"), (f"{key}.json", b'{"n": 1}')]
    (tmp_path / "shard-0.tar").write_bytes(tar(*members))
    source = open_source(settings(f"{tmp_path}/*.tar", image="png", streaming=streaming))
    assert source.columns == {
        "png": "any",
        "txt": "text",
        "json": "any",
        "__key__": "text",
        "__url__": "text",
    }
    first, bad, last = source
    assert first.columns["txt"] == "hello"
    assert first.columns["json"] == {"n": 1}
    assert first.open_image().pixels.size == (40, 30)
    assert last.open_image().pixels.size == (40, 30)
    with pytest.raises(RowError):
        bad.open_image()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_images(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(an_image())
    (tmp_path / "set" / "b.png").write_bytes(b"junk")
    good, bad = open_source(settings(str(tmp_path / "set"), streaming=streaming))
    assert good.open_image().pixels.size == (40, 30)
    with pytest.raises(RowError, match=r"b\.png"):
        bad.open_image()


def test_zipped_images_are_streamed(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "all.zip", "w") as archive:
        archive.writestr("a.png", an_image())
    (row,) = open_source(settings(str(tmp_path / "set"), streaming=True))
    assert row.open_image().pixels.size == (40, 30)


def test_paths_in_a_column_start_at_the_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "a.png").write_bytes(an_image("blue"))
    (tmp_path / "set" / "a.png").write_bytes(an_image("red"))
    rows = {"image": ["a.png", "http://example.com/a.png"], "label": [1, 2]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / "x.parquet")
    source = open_source(settings(str(tmp_path / "set")))
    assert source.columns == {"image": "text", "label": "number"}
    good, url = source
    assert good.open_image().pixels.getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(RowError, match="allow_urls"):
        url.open_image()


@pytest.mark.parametrize("streaming", [False, True])
def test_json_lines_too(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "n": 1}\n{"image": "b.png", "n": 2}\n')
    source = open_source(settings(str(tmp_path / "rows.jsonl"), streaming=streaming))
    assert source.columns == {"image": "text", "n": "number"}
    assert [row.columns["n"] for row in source] == [1, 2]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("write", "more", "words"),
    [
        (parquet, {"split": "trian"}, "data.split=trian: .*train"),
        (saved_splits, {"split": "tests"}, "data.split=tests: .*test"),
        (parquet, {"image": "imag"}, "data.image=imag: .*no such column.*image"),
        (parquet, {"name": "other"}, "can't open .*'other' not found"),
        (lambda folder: str(folder / "none"), {}, "no such folder"),
        (lambda folder: str(folder / "none.parquet"), {}, "no such file"),
        (lambda folder: str(folder), {}, "can't open|neither"),
    ],
)
def test_data_sets_that_cannot_be_opened(
    tmp_path: Path, write: Callable[[Path], str], more: dict[str, Any], words: str, streaming: bool
) -> None:
    with pytest.raises(DataError, match=words):
        open_source(settings(write(tmp_path), streaming=streaming, **more))


def test_a_hub_out_of_reach() -> None:
    with pytest.raises(DataError, match=r"can't reach the hub .*local file or folder.*HF_HUB_OFFLINE=1"):
        open_source(settings("someone/something"))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_empty_set(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "data").mkdir()
    bench(IMAGES).select([]).to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match=r"no rows|no data"):
        list(open_source(settings(str(tmp_path / "data"), streaming=streaming)))


def test_a_reader_that_breaks_keeps_earlier_rows(tmp_path: Path) -> None:
    path = Path(parquet(tmp_path))
    (path / "train-00001.parquet").write_bytes(b"PAR1 broken PAR1")
    source = iter(open_source(settings(str(path), streaming=True)))
    assert len(list(islice(source, 3))) == 3
    with pytest.raises(DataError, match="beyond its first 3 rows"):
        next(source)


@pytest.mark.parametrize("place", ["hf://datasets/x/y/a.png", "simplecache::hf://datasets/x/y/a.png"])
def test_a_cell_of_a_local_set_is_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    held = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": place}]}, features=datasets.Features({"image": cell})
    )
    held.to_parquet(tmp_path / "train.parquet")
    (row,) = open_source(settings(str(tmp_path)))
    monkeypatch.setattr("fsspec.open", lambda *_, **__: pytest.fail("it is fetched"))
    with pytest.raises(RowError, match=r"is a URL|no such file"):
        row.open_image()


def test_the_library_is_imported_lazily() -> None:
    code = "import sys, scalecap.data.hub; sys.exit('datasets' in sys.modules)"
    assert python("-c", code).returncode == 0
