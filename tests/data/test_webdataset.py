import gzip
import pickle  # noqa: TID251 - rows are pickled for other processes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from image_files import an_image, tar

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.sources import RowSource, open_source
from scalecap.rows import Row, RowError

Shard = Callable[..., str]


@pytest.fixture(params=["disk", "memory"])
def shard(request: pytest.FixtureRequest, tmp_path: Path) -> Shard:
    """Writes a shard where the parameter says; the pattern of all of them."""
    folder = str(tmp_path) if request.param == "disk" else f"memory:/{tmp_path}"

    def write(content: bytes, name: str = "0.tar") -> str:
        with fsspec.open(f"{folder}/{name}", "wb") as file:
            file.write(content)
        return f"{folder}/*.tar"

    return write


def opened(path: str, **more: Any) -> RowSource:
    source = open_source(DataSettings(source="webdataset", path=path, **more))
    assert isinstance(source, RowSource)
    return source


def sample(key: str, color: str = "red") -> list[tuple[str, bytes]]:
    return [
        (f"{key}.png", an_image(color)),
        (f"{key}.json", b'{"n": 1, "tags": ["a"]}'),
        (f"{key}.txt", b"a dog"),
    ]


def test_samples_are_rows(shard: Shard) -> None:
    shard(tar(*sample("a/0001"), *sample("a/0002", "blue")))
    source = opened(shard(tar(*sample("0001")), "1.tar"))
    assert source.columns == {
        "image": "text",
        "__key__": "text",
        "txt": "text",
        "n": "number",
        "tags": "texts",
    }
    assert source.total is None
    rows = list(source)
    assert [row.index for row in rows] == [0, 1, 2]
    assert [row.part for row in rows] == [None, (0, 2), (2, 1)]
    assert rows[1].columns["image"].endswith("/0.tar#a/0002.png")
    assert {**rows[1].columns, "image": ""} == {
        "image": "",
        "__key__": "a/0002",
        "txt": "a dog",
        "n": 1,
        "tags": ["a"],
    }
    assert rows[0].stamp == rows[1].stamp != rows[2].stamp
    for row, color in zip(rows, [(255, 0, 0), (0, 0, 255), (255, 0, 0)], strict=True):
        again = pickle.loads(pickle.dumps(row))
        assert again.open_image().pixels.getpixel((0, 0)) == color
        assert again.read_image() == row.read_image()
    assert rows[1].read_image() == an_image("blue")
    assert len(list(source)) == 3, "a source can be read again"


def test_the_image_is_chosen_by_its_extension(shard: Shard) -> None:
    path = shard(
        tar(("1.png", an_image()), ("1.mask.png", an_image("blue")), ("2.png", an_image()), ("2.npy", b"?"))
    )
    two, one = opened(path)
    assert two.error is not None
    assert two.error.kind == "two_images"
    assert "1.png, 1.mask.png" in str(two.error)
    assert one.error is None
    two, one = opened(path, image="mask.png")
    assert list(two.columns) == ["mask.png", "__key__"]
    assert two.open_image().pixels.getpixel((0, 0)) == (0, 0, 255)
    assert one.columns["mask.png"].endswith("#2.png")


def test_keys_that_clash_are_kept_under_another_name(shard: Shard) -> None:
    (row,) = opened(
        shard(tar(("1.png", an_image()), ("1.json", b'{"image": "x", "txt": "y", "a": 1}'), ("1.txt", b"z")))
    )
    assert {**row.columns, "image": ""} == {
        **{"image": "", "__key__": "1", "txt": "z"},
        **{"json.image": "x", "json.txt": "y", "a": 1},
    }


def test_other_json_is_one_column(shard: Shard) -> None:
    (row,) = opened(
        shard(
            tar(("1.png", an_image()), ("1.json", b"[1]"), ("1.boxes.json", b'{"a": 1}'), ("1.cls", b"7\n"))
        )
    )
    assert (row.columns["json"], row.columns["boxes.json"], row.columns["cls"]) == ([1], {"a": 1}, 7)


GOOD = sample("good")


@pytest.mark.parametrize(
    ("members", "kind", "words"),
    [
        ([("bad.json", b"{}")], "no_image", "0.tar#bad' has no image: its files are bad.json"),
        ([("bad.png", an_image()), ("bad.jpg", b"")], "two_images", "bad.png, bad.jpg"),
        ([("bad.png", an_image()), ("bad.png", an_image())], "two_images", "2 images"),
        ([("bad.png", an_image()), ("bad.json", b"{")], "invalid_json", "bad.json' is not JSON"),
        ([("bad.png", an_image()), ("bad.json", b"[" * 100_000)], "invalid_json", "bad.json' is not JSON"),
        ([("bad.png", an_image()), ("bad.txt", b"\xff")], "invalid_text", "bad.txt' is not UTF-8"),
        ([("bad.png", an_image()), ("bad.cls", b"cat")], "invalid_cls", "bad.cls' is not a number"),
        ([("bad.png", an_image()), ("bad.txt", b""), ("bad.txt", b"")], "two_members", "occurs twice"),
        (
            [("bad.png", an_image()), ("bad.json", b"{}"), ("bad.json", b"{}")],
            "two_members",
            "two files named",
        ),
    ],
)
def test_a_bad_sample_is_an_error_of_its_row(
    shard: Shard, members: list[tuple[str, bytes]], kind: str, words: str
) -> None:
    first, bad, last = opened(shard(tar(*GOOD, *members, *sample("last"))))
    assert first.error is last.error is None
    assert bad.error is not None
    assert bad.error.kind == kind
    assert words in str(bad.error)
    assert bad.columns["image"].endswith("0.tar#bad")


def test_an_unreadable_image_fails_alone(shard: Shard) -> None:
    junk, empty, good = opened(shard(tar(("1.png", b"junk"), ("2.png", b""), *GOOD)))
    for row, kind in ((junk, "unreadable_image"), (empty, "empty_file")):
        assert row.error is None
        with pytest.raises(RowError, match=r"0\.tar#") as caught:
            row.open_image()
        assert caught.value.kind == kind
    assert good.open_image()


WHOLE = tar(*sample("1"), *sample("2"), *sample("3"))


@pytest.mark.parametrize("cut", range(100, len(WHOLE) - 8 * 512, 700))
def test_a_truncated_shard_loses_no_other(shard: Shard, cut: int) -> None:
    """What precedes the cut is whole, and the cut itself is an error unless it is at a file's end."""
    shard(WHOLE[:cut])
    rows = list(opened(shard(tar(*GOOD), "1.tar")))
    assert rows[-1].error is None
    assert rows[-1].columns["__key__"] == "good"
    broken = rows[:-1]
    assert all(row.error is None for row in broken[:-1])
    for row in broken[:-1]:
        assert row.open_image()
        assert row.columns["n"] == 1
    error = broken[-1].error
    assert error is not None
    assert error.kind in ("truncated_member", "unreadable_shard")
    assert "0.tar" in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no tar at all" * 100, "as a tar"),
        (b"", "as a tar: empty file"),
        (gzip.compress(WHOLE), "it is compressed"),
        (WHOLE[:5120] + b"x" * 512 + WHOLE[5632:], "is damaged"),
    ],
)
def test_a_broken_shard_is_one_row(shard: Shard, content: bytes, words: str) -> None:
    shard(content)
    rows = list(opened(shard(tar(*GOOD), "1.tar")))
    (bad,) = (row for row in rows if row.error)
    assert words in str(bad.error)
    assert rows[-1].error is None


def test_nothing_readable_is_an_error_of_the_data_set(shard: Shard) -> None:
    path = shard(b"no tar at all" * 100)
    message = r"none of the first 1 samples of .* can be read: can't read .*0\.tar' as a tar"
    with pytest.raises(DataError, match=message):
        opened(path)
    with pytest.raises(DataError, match="has no samples"):
        opened(shard(tar(("README", b"x"), (".hidden.jpg", b"x"), ("folder/._1.jpg", b"x"))))


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "a\nb", "é/\udcff"])
def test_a_name_is_never_a_path(shard: Shard, tmp_path: Path, key: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    (row,) = opened(shard(tar((f"{key}.png", an_image()), (f"{key}.txt", b"x"))))
    assert row.open_image().pixels.getpixel((0, 0)) == (255, 0, 0)
    assert row.columns["__key__"].encode("utf-8")
    assert len(sorted(tmp_path.rglob("*"))) - len(before) <= 1, "the shard itself"


def known(rows: list[Row], *parts: int) -> Callable[..., int]:
    """Reports the parts that begin at these rows as finished, with their numbers of rows."""
    ends = {row.part[0]: (row.part[1], row.stamp) for row in rows if row.part}

    def finished(stamp: str, first: int, count: int | None = None, **_: object) -> int:
        return ends[first][0] if first in parts and ends[first][1] == stamp else 0

    return finished


def test_finished_shards_are_skipped(shard: Shard) -> None:
    shard(tar(*sample("1"), *sample("2")), "0.tar")
    path = shard(tar(*sample("3"), *sample("4")), "1.tar")
    rows = list(opened(path))
    left = list(opened(path).unfinished(known(rows, 0)))
    assert left[0] == range(2)
    assert [row.index for row in left[1:] if isinstance(row, Row)] == [2, 3]
    assert list(opened(path).unfinished(known(rows, 0, 2))) == [range(2), range(2, 4)]
    assert list(opened(path, limit=3).unfinished(known(rows, 0, 2))) == [range(2), range(2, 3)]
    own = list(opened(path, shard="1/3").unfinished(known([])))
    assert [(row.index, row.part) for row in own if isinstance(row, Row)] == [(1, (0, 2))]
    assert next(iter(opened(path, shard="1/3").unfinished(known(own, 0)))) == range(1, 2, 3)
    shard(tar(*sample("1"), *sample("2", "blue")), "0.tar")
    first = next(iter(opened(path).unfinished(known(rows, 0))))
    assert isinstance(first, Row), "another shard under the same name"
