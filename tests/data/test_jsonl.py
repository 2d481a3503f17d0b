import errno
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from image_files import an_image

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.sources import open_source
from scalecap.rows import Row, RowError

GOOD = {"image": "red.png", "note": "first"}
Write = Callable[..., Path]


def rows(path: Path, **settings: object) -> list[Row]:
    return list(open_source(DataSettings(source="jsonl", path=str(path), **settings)))  # type: ignore[arg-type]


def test_rows_in_order_with_their_columns(write_jsonl: Write) -> None:
    path = write_jsonl(GOOD, "", "   ", {"image": "red.png", "note": "second", "n": 2})
    source = open_source(DataSettings(source="jsonl", path=str(path)))
    assert source.total == 2
    assert source.columns == {"image": "text", "note": "text", "n": "number"}
    first, second = source
    assert (first.index, first.columns) == (0, GOOD)
    assert (second.index, second.columns["note"]) == (1, "second")
    assert first.open_image().hash == second.open_image().hash
    assert len(list(source)) == 2, "a source can be read again"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "text"),
        (["a", None], "text"),
        ([1, 2.5], "number"),
        ([True, False], "any"),
        ([["a"], []], "texts"),
        ([["a"], [1]], "any"),
        ([1, "a"], "any"),
        ([{"a": 1}], "any"),
        ([None], "any"),
    ],
)
def test_kinds_of_columns(write_jsonl: Write, values: list[object], kind: str) -> None:
    path = write_jsonl(*({"image": "red.png", "x": value} for value in values))
    assert open_source(DataSettings(source="jsonl", path=str(path))).columns["x"] == kind


def test_a_bom_is_not_part_of_the_first_row(write_jsonl: Write) -> None:
    (row,) = rows(write_jsonl(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()))
    assert row.columns == GOOD


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ('{"image": "red.png"', "invalid_json", "line 2 of '.*rows.jsonl' is not valid JSON"),
        ("just text", "invalid_json", "line 2 of"),
        ('["red.png"]', "invalid_json", "line 2 of .*expected a JSON object, got list"),
        (b'{"image": "\xff.png"}', "invalid_json", "line 2 of .* is not UTF-8"),
        ("[" * 100_000, "invalid_json", "line 2 of"),
        ('{"image": ' + "9" * 5000 + "}", "invalid_json", "line 2 of"),
        ({"imge": "red.png"}, "missing_key", "line 2 of .* no key 'image'; did you mean 'imge'"),
        ({"x": 1, "y": 2}, "missing_key", "line 2 of .* no key 'image'; available: x, y"),
        ({}, "missing_key", "available: none"),
    ],
)
def test_a_bad_line_is_a_row_with_an_error(write_jsonl: Write, line: object, kind: str, words: str) -> None:
    first, bad, last = rows(write_jsonl(GOOD, line, GOOD))
    assert first.error is None
    assert last.error is None
    assert last.index == 2
    assert bad.error is not None
    assert bad.error.kind == kind
    with pytest.raises(RowError, match=words):
        bad.open_image()


def test_a_file_that_fails_while_it_is_read_is_named(
    write_jsonl: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(DataSettings(source="jsonl", path=str(write_jsonl(GOOD, GOOD))))

    class Failing(io.BytesIO):
        def __next__(self) -> bytes:
            if self.tell():
                raise OSError(errno.EIO, "Input/output error")
            return super().__next__()

    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(json.dumps(GOOD).encode() + b"\n"))
    found = iter(source)
    assert next(found).columns == GOOD
    with pytest.raises(DataError, match=r"can't read data\.path='.*rows\.jsonl': Input/output error"):
        next(found)


@pytest.mark.parametrize("cell", [None, "", 3, "no.png", "https://example.com/a.png"])
def test_a_bad_image_fails_when_it_is_opened(write_jsonl: Write, cell: object) -> None:
    bad, good = rows(write_jsonl({"image": cell}, GOOD))
    assert bad.error is None
    assert bad.columns == {"image": cell}
    with pytest.raises(RowError):
        bad.open_image()
    assert good.open_image().pixels.size == (40, 30)


def test_limit_takes_the_first(write_jsonl: Write) -> None:
    path = write_jsonl(GOOD, "not json", GOOD)
    source = open_source(DataSettings(source="jsonl", path=str(path), limit=2))
    assert source.total == 2
    assert [row.error is None for row in source] == [True, False]
    assert open_source(DataSettings(source="jsonl", path=str(path), limit=9)).total == 3


def test_paths_start_at_the_file_then_at_the_working_folder(
    write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(GOOD, {"image": "here.png"})
    work = tmp_path / "work"
    work.mkdir()
    (work / "red.png").write_bytes(an_image("blue"))
    (work / "here.png").write_bytes(an_image("lime"))
    monkeypatch.chdir(work)
    first, second = rows(path)
    assert first.open_image().pixels.getpixel((0, 0)) == (255, 0, 0)
    assert second.open_image().pixels.getpixel((0, 0)) == (0, 255, 0)
    first, _ = rows(path, relative_to="cwd")
    assert first.open_image().pixels.getpixel((0, 0)) == (0, 0, 255)


def test_columns_hold_no_pixels_and_no_broken_text(write_jsonl: Write) -> None:
    line = '{"image": "data:image/png;base64,AAAA", "a": NaN, "b": "\\ud800", "c": [Infinity]}'
    (row,) = rows(write_jsonl(line))
    assert row.columns == {"image": None, "a": None, "b": "?", "c": [None]}


def test_reading_is_lazy(write_jsonl: Write) -> None:
    path = write_jsonl(*[GOOD] * 200)
    taken = iter(open_source(DataSettings(source="jsonl", path=str(path))))
    next(taken)
    path.write_text("")
    assert sum(1 for _ in taken) < 199


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't read data.path=.*No such file"),
        (b"", "has no rows"),
        (b"\n  \n", "has no rows"),
        (b'[\n{"image": "red.png"}\n]\n', None),
        (b"[1]\n", "none of the first 1 lines of .* is a row: line 1 of .*expected a JSON object"),
        (b'{"picture": "red.png"}\n{"picture": "b.png"}\n', "line 1 of .*no key 'image'.*data.image"),
    ],
)
def test_a_file_without_rows(tmp_path: Path, content: bytes | None, words: str | None) -> None:
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    if words is None:
        assert [row.error is None for row in rows(path)] == [False, True, False]
        return
    with pytest.raises(DataError, match=words):
        rows(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data=folder"):
        rows(tmp_path)
