import pickle  # noqa: TID251 - rows are pickled for other processes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import an_image

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.files import File
from scalecap.data.sources import RowSource, open_source
from scalecap.rows import Row, RowError

Write = Callable[..., str]
COLORS = [(number, 0, 255 - number) for number in range(100)]


@pytest.fixture(params=["disk", "memory"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    """Writes columns as a file where the parameter says; the pattern of all of them."""
    folder = str(tmp_path) if request.param == "disk" else f"memory:/{tmp_path}"

    def written(columns: dict[str, Any], name: str = "0.parquet", group: int = 10) -> str:
        with fsspec.open(f"{folder}/{name}", "wb") as file:
            pq.write_table(pa.table(columns), file, row_group_size=group)
        return f"{folder}/*.parquet"

    return written


def opened(path: str, **more: Any) -> RowSource:
    source = open_source(DataSettings(source="parquet", path=path, **more))
    assert isinstance(source, RowSource)
    return source


def cells(count: int, path: str | None = None) -> list[dict[str, Any]]:
    return [{"bytes": an_image(color), "path": path} for color in COLORS[:count]]


def color(row: Row) -> Any:
    return row.open_image().pixels.getpixel((0, 0))


def test_rows_with_their_columns_and_images(write: Write) -> None:
    columns = {
        "image": [*cells(24), {"bytes": b"junk", "path": "bad.png"}],
        "n": range(25),
        "caption": ["a dog"] * 25,
        "tags": [["a"]] * 25,
        "mask": [an_image()] * 25,
        "other": cells(25, "x.png"),
    }
    path = write(columns)
    write({"image": cells(1)}, "1.parquet")
    source = opened(path)
    kinds = {"n": "number", "caption": "text", "tags": "texts", "mask": "any", "other": "any"}
    assert source.columns == {"image": "text", **kinds}
    assert source.total == 26
    rows = list(source)
    assert [row.index for row in rows] == list(range(26))
    assert rows[17].columns["image"].endswith("/0.parquet#17")
    assert {**rows[17].columns, "image": ""} == {
        **{"image": "", "n": 17, "caption": "a dog", "tags": ["a"]},
        **{"mask": None, "other": {"path": "x.png"}},
    }
    assert rows[24].columns["image"] == "bad.png"
    assert rows[25].columns["image"].endswith("/1.parquet#0")
    with pytest.raises(RowError, match=r"bad\.png"):
        rows[24].open_image()
    again = [pickle.loads(pickle.dumps(row)) for row in rows]
    for number in (0, 23, 5, 22, 11, 10, 0):
        assert color(again[number]) == COLORS[number], "in any order"
        assert rows[number].read_image is not None
        assert rows[number].read_image() == columns["image"][number]["bytes"]


def test_bytes_alone(write: Write) -> None:
    rows = list(opened(write({"photo": [an_image(each) for each in COLORS[:3]]}), image="photo"))
    assert [color(row) for row in rows] == COLORS[:3]
    assert [list(row.columns) for row in rows] == [["photo"]] * 3


@pytest.mark.parametrize("as_written", [False, True], ids=["texts", "as scalecap writes them"])
def test_paths(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_written: bool) -> None:
    (tmp_path / "red.png").write_bytes(an_image())
    names = ["red.png", "none.png", None, "https://host/a.png"]
    path = write({"image": [name and {"path": name} for name in names] if as_written else names})
    if not path.startswith("memory:"):  # names there lead to this disk only by the working folder
        monkeypatch.chdir(tmp_path.parent)
    red, missing, null, url = opened(path)
    assert color(red) == (255, 0, 0)
    assert red.columns == {"image": "red.png"}
    assert "bytes of" in red.stamp
    for row, kind in ((missing, "missing_file"), (null, "bad_cell"), (url, "url_refused")):
        with pytest.raises(RowError) as caught:
            row.open_image()
        assert caught.value.kind == kind


def test_unreadable_files_are_one_row_each(write: Write) -> None:
    path = write({"image": cells(2)})
    write({"picture": cells(2)}, "1.parquet")
    with fsspec.open(path.replace("*", "2"), "wb") as file:
        file.write(b"junk")
    write({"image": [1, 2]}, "3.parquet")
    rows = list(opened(path))
    assert opened(path).total == len(rows) == 5
    assert [row.index for row in rows] == list(range(5))
    errors = [(row.error.kind, str(row.error)) for row in rows if row.error]
    assert [kind for kind, _ in errors] == ["missing_key", "unreadable_file", "bad_cell"]
    for number, (_, message) in enumerate(errors, 1):
        assert f"{number}.parquet" in message
    assert "did you mean 'picture'" in errors[0][1] or "available: picture" in errors[0][1]


def test_no_file_is_readable(write: Write) -> None:
    path = write({"picture": cells(2)})
    with pytest.raises(DataError, match=r"data\.image=image: .*0\.parquet' has no such column"):
        opened(path)
    with pytest.raises(DataError, match="has no rows"):
        opened(write({"image": pa.array([], pa.binary())}))


def test_a_broken_row_group_fails_its_own_rows(write: Write) -> None:
    columns = {"image": cells(30), "n": [f"text {number}" * 50 for number in range(30)]}
    path = write(columns)
    with fsspec.open(path.replace("*", "0"), "rb") as file:
        content = bytearray(file.read())
    group = pq.read_metadata(pa.BufferReader(bytes(content))).row_group(1)
    start = group.column(group.num_columns - 1).dictionary_page_offset
    content[start : start + 64] = b"\xff" * 64
    with fsspec.open(path.replace("*", "0"), "wb") as file:
        file.write(bytes(content))
    rows = list(opened(path))
    assert [row.index for row in rows] == list(range(30))
    assert [row.index for row in rows if row.error] == list(range(10, 20))
    assert color(rows[25]) == COLORS[25]


def test_finished_row_groups_are_not_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write({"image": cells(25)})
    source = opened(path)
    queried: list[tuple[int, int | None]] = []

    def finished(stamp: str, first: int, rows: int | None = None) -> int:
        queried.append((first, rows))
        return (rows or 0) if first == 10 else 0

    left = list(source.unfinished(finished))
    assert queried == [(0, 10), (10, 10), (20, 5)]
    assert left[10] == range(10, 20)
    assert [row.index for row in left if isinstance(row, Row)] == [*range(10), *range(20, 25)]
    monkeypatch.setattr(File, "open", lambda file: pytest.fail("it is opened"))
    assert list(source.unfinished(lambda stamp, first, rows=None: rows or 0)) == [
        range(10),
        range(10, 20),
        range(20, 25),
    ]


def test_one_failed_read_loses_no_other_image(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(opened(write({"image": cells(40)}, group=40)))
    batches = pq.ParquetFile.iter_batches
    failed = False

    def failing(*arguments: Any, **settings: Any) -> Any:
        nonlocal failed
        for number, batch in enumerate(batches(*arguments, **settings)):
            if number == 2 and not failed:
                failed = True
                raise OSError("connection reset")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    unreadable: list[int] = []
    for row in rows:
        try:
            assert color(row) == COLORS[row.index]
        except RowError:
            unreadable.append(row.index)
    assert unreadable == [16]


def test_images_are_streamed(tmp_path: Path) -> None:
    """A row group far larger than the part of it held in memory."""
    noise = [{"bytes": bytes([n % 251]) * 200_000, "path": None} for n in range(400)]
    pq.write_table(
        pa.table({"image": noise}), tmp_path / "0.parquet", write_batch_size=8, use_dictionary=False
    )
    before = pa.total_allocated_bytes()
    most = 0
    for row in opened(str(tmp_path)):
        assert row.read_image is not None
        assert row.read_image()[:1] == bytes([row.index % 251])
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 20e6
