"""Runs over tar shards and parquet that stop and resume: what is read again."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import image_files
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import Compose, Rows, captions

from scalecap.data.files import File
from scalecap.engines.scripted import Scripted
from scalecap.runner import run
from scalecap.scenes.world import SAMPLE

QUIET = ("progress=false", "report=false", "cache=off")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened, and its images read, since this was last cleared."""
    found: Counter[str] = Counter()
    whole_read, whole_open = File.read, File.open

    def read(file: File, start: int, size: int) -> bytes:
        found["images of " + file.name.rpartition("/")[2]] += 1
        return whole_read(file, start, size)

    def open_(file: File) -> Any:
        found[file.name.rpartition("/")[2]] += 1
        return whole_open(file)

    monkeypatch.setattr(File, "read", read)
    monkeypatch.setattr(File, "open", open_)
    return found


def an_image(number: int) -> bytes:
    return image_files.an_image((number, 0, 0), (30, 30))


def shard(numbers: range, broken: int | None = None) -> bytes:
    members = []
    for number in numbers:
        members.append((f"{number}.png", b"junk" if number == broken else an_image(number)))
        members.append((f"{number}.json", b'{"n": %d}' % number))
    return image_files.tar(*members)


def put(path: str, content: bytes) -> None:
    with fsspec.open(path, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_finished_shards_are_not_opened_again(
    compose: Compose, engines: dict[str, Scripted], reads: Counter[str], tmp_path: Path, where: str
):
    folder = f"{tmp_path}/shards" if where == "disk" else f"memory:/{tmp_path}"
    (tmp_path / "shards").mkdir()
    for number in range(4):
        put(f"{folder}/{number}.tar", shard(range(number * 3, number * 3 + 3)))
    words = ["data=webdataset", f"data.path={folder}/*.tar", *QUIET]
    assert run(compose(*words, "data.limit=7"), engines=engines).done == 7
    assert reads["images of 0.tar"] == 3

    reads.clear()
    summary = run(compose(*words), engines=engines)
    assert (summary.done, summary.reused, summary.failed) == (12, 7, 0)
    # Each is opened once to see what columns there are; the first two not for their rows.
    opened = {f"{number}.tar": 1 + (number > 1) for number in range(4)}
    assert reads == {**opened, "images of 2.tar": 2, "images of 3.tar": 3}
    assert [row["n"] for row in captions()] == list(range(12))

    reads.clear()
    put(f"{folder}/1.tar", shard(range(3, 6), broken=4))
    summary = run(compose(*words), engines=engines)
    assert (summary.done, summary.reused, summary.failed) == (11, 9, 1)
    assert reads["images of 1.tar"] == 3
    assert sum(reads[f"{number}.tar"] for number in (0, 2, 3)) == 3, "to see what columns there are"

    reads.clear()
    assert run(compose(*words), engines=engines).reused == 11
    assert reads["images of 1.tar"] == 1, "what failed is tried again, and nothing else"


def test_finished_row_groups_are_not_read_again(
    compose: Compose, engines: dict[str, Scripted], reads: Counter[str], tmp_path: Path
):
    for number in range(3):
        table = pa.table({"image": [an_image(number * 6 + each) for each in range(6)], "n": range(6)})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    words = ["data=parquet", f"data.path={tmp_path}/*.parquet", *QUIET]
    assert run(compose(*words, "data.limit=8"), engines=engines).done == 8
    reads.clear()
    summary = run(compose(*words), engines=engines)
    assert (summary.done, summary.reused) == (18, 8)
    # Each for its footer; then rows, and images, of the row groups that were not finished: a group is
    # read once for both of its images, unless another one's comes between.
    assert reads["0.parquet"] == 1
    assert 1 + 1 + 2 <= reads["1.parquet"] <= 1 + 1 + 4
    assert 1 + 1 + 3 <= reads["2.parquet"] <= 1 + 1 + 6
    assert [row["image"] for row in captions()][7] == f"{tmp_path}/1.parquet#1"


@pytest.mark.parametrize("source", ["webdataset", "parquet"])
def test_a_shard_of_the_rows_skips_its_finished_parts(
    compose: Compose, engines: dict[str, Scripted], reads: Counter[str], tmp_path: Path, source: str
):
    for number in range(4):
        numbers = range(number * 3, number * 3 + 3)
        put(f"{tmp_path}/{number}.tar", shard(numbers))
        table = pa.table({"image": [an_image(each) for each in numbers], "n": numbers})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    suffix = {"webdataset": "tar", "parquet": "parquet"}[source]
    words = [f"data={source}", f"data.path={tmp_path}/*.{suffix}", "data.shard=1/2", *QUIET]
    assert run(compose(*words, "data.limit=9"), engines=engines).done == 4
    reads.clear()
    summary = run(compose(*words), engines=engines)
    assert (summary.done, summary.reused) == (6, 4)
    assert [row["n"] for row in captions()] == [1, 3, 5, 7, 9, 11]
    # Once to see what columns there are.
    assert [reads[f"{number}.{suffix}"] for number in range(3)] == [1, 1, 1]
    assert reads[f"3.{suffix}"] > 1
    reads.clear()
    assert run(compose(*words), engines=engines).reused == 6
    assert [reads[f"{number}.{suffix}"] for number in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("source", ["webdataset", "parquet", "jsonl"])
@pytest.mark.parametrize("form", ["path", "bytes", "none"])
def test_the_data_set_holds_names_or_images(
    compose: Compose,
    engines: dict[str, Scripted],
    rows: Rows,
    tmp_path: Path,
    source: str,
    form: str,
):
    path = {
        "webdataset": f"data.path={tmp_path}/0.tar",
        "parquet": f"data.path={tmp_path}/0.parquet",
        "jsonl": rows(3, broken=(1,)),
    }
    put(f"{tmp_path}/0.tar", shard(range(3), broken=1))
    cells = [{"bytes": an_image(each) if each != 1 else b"junk", "path": None} for each in range(3)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "0.parquet")
    words = [f"data={source}", path[source], f"write.image={form}", *QUIET]
    summary = run(compose(*words), engines=engines)
    assert (summary.done, summary.failed) == (2, 1)
    table = pq.read_table(tmp_path / "run" / "dataset")
    if form == "bytes":
        cells = table["image"].to_pylist()
        assert [cell and cell["bytes"] for cell in cells] == [an_image(0), None, an_image(2)]
    elif form == "path":
        assert table["image"].to_pylist() == [row["image"] for row in captions()]
    else:
        assert "image" not in table.column_names


@pytest.mark.slow
def test_the_embedded_model_stopped_in_the_middle_skips_finished_shards(
    compose: Compose, reads: Counter[str], tmp_path: Path
):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    truths = [json.loads(line) for line in (SAMPLE / "truth.jsonl").read_text().splitlines()][:8]
    (tmp_path / "shards").mkdir()
    for number in range(4):
        members = []
        for row in truths[number * 2 : number * 2 + 2]:
            members.append((row["image"], (SAMPLE / row["image"]).read_bytes()))
            members.append(
                (row["image"].replace("jpg", "json"), json.dumps({"truth": row["truth"]}).encode())
            )
        (tmp_path / "shards" / f"{number:03d}.tar").write_bytes(image_files.tar(*members))
    words = [
        *("data=webdataset", f"data.path='{tmp_path}/shards/{{000..003}}.tar'", "engine=transformers"),
        *("evaluate=scenes", "rows_in_flight=2", "write.image=bytes", *QUIET),
    ]
    whole = run(compose(*words))
    assert (whole.done, whole.failed) == (8, 0)
    expected = (tmp_path / "run" / "captions.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run")

    stopped = run(compose(*words, f"max_requests={whole.usage.total.requests // 2}"))
    assert stopped.status == "stopped"
    assert 2 <= stopped.done < 8
    reads.clear()
    summary = run(compose(*words))
    assert (summary.done, summary.reused) == (8, stopped.done)
    finished = stopped.done // 2
    for number in range(4):
        # Once to see what columns there are, once for its rows, once when the data set is written.
        assert reads[f"{number:03d}.tar"] == 1 + (number >= finished) + 1
        left = min(2, max(0, 2 * (number + 1) - stopped.done))
        assert reads[f"images of {number:03d}.tar"] == left + 2
    assert (tmp_path / "run" / "captions.jsonl").read_bytes() == expected
    assert whole.metrics == summary.metrics
    images = pq.read_table(tmp_path / "run" / "dataset")["image"].to_pylist()
    assert [cell["bytes"] for cell in images] == [(SAMPLE / row["image"]).read_bytes() for row in truths]
