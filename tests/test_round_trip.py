"""Each caption stays with its own image: from every source, however the run ended, in every output.

Each image has one colour that its caption names, so the test compares the two.
"""

import asyncio
import base64
import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from image_files import an_image, tar
from omegaconf import OmegaConf
from PIL import Image as Pillow
from runs import Compose, captions, interrupt

from scalecap.config.settings import Settings
from scalecap.data.sources import open_source
from scalecap.engines.base import EngineDead, Request
from scalecap.engines.scripted import Scripted
from scalecap.report.comparison import Comparison
from scalecap.report.push import write_repository
from scalecap.report.run_page import write_report
from scalecap.report.thumbnails import AMBIGUOUS
from scalecap.run.folder import read_runs
from scalecap.run.merge import merge
from scalecap.runner import run

COLOURS = {
    **{"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)},
    **{"cyan": (0, 255, 255), "magenta": (255, 0, 255), "black": (0, 0, 0), "grey": (128, 128, 128)},
}
ROWS = ("grey", "red", "grey", "green", "blue", "grey", "yellow", "red", "cyan", "magenta", "black")
"""Colours of the rows; some images are equal, and so are their rows where nothing else tells them apart."""
SLOW = ("grey", "blue", "black")
"""Images that a run which is stopped never captions: what it leaves out lies between what it has."""


def colour_of(pixels: Pillow.Image) -> str:
    """The name of the colour in the middle."""
    found = pixels.convert("RGB").getpixel((pixels.width // 2, pixels.height // 2))
    assert isinstance(found, tuple)
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], found, strict=True)))


def jsonl(folder: Path) -> list[str]:
    lines = []
    for number, colour in enumerate(ROWS):
        name = f"{colour}.png" if colour == "grey" else f"{number}.png"  # equal rows name one file
        (folder / name).write_bytes(an_image(COLOURS[colour]))
        lines.append(json.dumps({"image": name}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return ["data=jsonl", f"data.path={folder}/rows.jsonl"]


def jsonl_bytes(folder: Path) -> list[str]:
    """Images that are in the rows themselves."""
    urls = [f"data:image/png;base64,{base64.b64encode(an_image(COLOURS[each])).decode()}" for each in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"image": url}) for url in urls))
    return ["data=jsonl", f"data.path={folder}/rows.jsonl", "data.allow_urls=true"]


def folder_of_images(folder: Path) -> list[str]:
    for number, colour in enumerate(ROWS):
        path = folder / "photos" / (f"{number:02}/a.png" if number % 2 else f"{number:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(an_image(COLOURS[colour]))
    return ["data=folder", f"data.path={folder}/photos"]


def pil(folder: Path, **more: Any) -> datasets.Dataset:
    """A data set of images that have no paths."""
    cells = [Pillow.new("RGB", (40, 30), COLOURS[colour]) for colour in ROWS]
    features = datasets.Features({"image": datasets.Image()} | dict.fromkeys(more, datasets.Value("string")))
    return datasets.Dataset.from_dict({"image": cells, **more}, features=features)


def saved(folder: Path) -> list[str]:
    pil(folder).save_to_disk(folder / "saved")
    return ["data=hub", f"data.path={folder}/saved"]


def streamed(folder: Path) -> list[str]:
    pil(folder).to_parquet(folder / "saved.parquet")
    return ["data=hub", f"data.path={folder}/saved.parquet", "data.streaming=true"]


def parquet(folder: Path) -> list[str]:
    rows = pil(folder)
    for number in range(2):
        rows.shard(2, number, contiguous=True).to_parquet(folder / f"{number}.parquet", batch_size=3)
    return ["data=parquet", f"data.path={folder}/*.parquet"]


def webdataset(folder: Path) -> list[str]:
    for number in range(2):
        half = ROWS[number * 6 : number * 6 + 6]
        members = [(f"{key}.png", an_image(COLOURS[colour])) for key, colour in enumerate(half)]
        (folder / f"{number}.tar").write_bytes(tar(*members))
    return ["data=webdataset", f"data.path={folder}/*.tar"]


def named(folder: Path) -> list[str]:
    """Rows that a column of their own names."""
    pil(folder, sku=[f"sku-{number * 7 % 11}" for number in range(len(ROWS))]).to_parquet(
        folder / "0.parquet"
    )
    return ["data=parquet", f"data.path={folder}/0.parquet", "data.id=sku"]


SOURCES = [jsonl, jsonl_bytes, folder_of_images, saved, streamed, parquet, webdataset, named]
Runs = Callable[..., Path]


@pytest.fixture(params=SOURCES, ids=lambda source: source.__name__)
def captioned(request: pytest.FixtureRequest, compose: Compose, tmp_path: Path) -> Runs:
    """Captions the source's rows with the names of their colours; the run's folder."""
    (tmp_path / "data").mkdir()
    settings = settings_of(compose, *request.param(tmp_path / "data"))

    def made(name: str, *, shard: str | None = None, stopped: bool = False) -> Path:
        data = replace(settings.data, shard=shard)
        folder = tmp_path / "runs" / name
        return caption(replace(settings, data=data, output=str(folder)), stopped=stopped)

    return made


def settings_of(compose: Compose, *data: str) -> Settings:
    """Of a run with one step."""
    settings = compose(*data, "cache=off", "rows_in_flight=16", "progress=false", "write.image=bytes")
    settings.pipeline.steps = {"caption": settings.pipeline.steps["init_caption"]}
    settings.report = False
    return settings


def caption(settings: Settings, *, stopped: bool = False) -> Path:
    """A run's folder; one that is `stopped` loses its engine once all but the slow images are done."""
    folder = Path(settings.output)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)  # as the command line does
    OmegaConf.save(OmegaConf.structured(settings), folder / ".hydra" / "config.yaml")
    others = sum(colour not in SLOW for colour in ROWS)

    async def answer(request: Request) -> str:
        assert request.prompt.image
        colour = colour_of(request.prompt.image.pixels)
        if stopped and colour in SLOW:
            while (folder / "journal.jsonl").read_bytes().count(b'{"index":') < others:
                await asyncio.sleep(0.001)
            raise EngineDead("it is gone")
        return colour

    summary = run(settings, engines={"vlm": Scripted(answer)})
    assert summary.status == ("stopped" if stopped else "finished"), summary.reason
    return folder


def blocks(page: Path, name: str) -> list[Any]:
    """The values in the page's blocks of that name, joined."""
    found = re.findall(rf'id="data-{name}-\d+">([^<]*)<', page.read_text(encoding="utf-8"))
    return [each for block in found for each in json.loads(gzip.decompress(base64.b64decode(block)))]


def thumbnail(cell: dict[str, str]) -> str:
    """The colour of a page's image, or why there is none."""
    if "none" in cell:
        return cell["none"]
    with Pillow.open(io.BytesIO(base64.b64decode(cell["webp"]))) as shown:
        return colour_of(shown)


def reported(folder: Path) -> list[tuple[str, str]]:
    """Captions with the images beside them, as the report shows them."""
    page = write_report(folder)
    texts = ["".join(each["text"] for each in row["sections"][-1]["texts"]) for row in blocks(page, "rows")]
    return list(zip(texts, map(thumbnail, blocks(page, "images")), strict=True))


def compared(folder: Path, *runs: Path) -> list[tuple[list[str | None], str]]:
    """Captions of every run with the image beside them, as the comparison shows them."""
    folder.mkdir()
    Comparison(read_runs(runs)).save(folder)
    rows = blocks(folder / "comparison.html", "rows")
    texts = [
        [
            job["segments"] and "".join(text for sign, text in job["segments"] if sign >= 0)
            for job in row["jobs"]
        ]
        for row in rows
    ]
    return list(zip(texts, map(thumbnail, blocks(folder / "comparison.html", "images")), strict=True))


def pushed(run: Path, to: Path) -> list[tuple[str, str | None]]:
    """Captions with the images in the data set that would be uploaded."""
    write_repository(run, "me/colours", to)
    rows = [row for path in sorted((to / "data").iterdir()) for row in pq.read_table(path).to_pylist()]
    images = [row["image"] and Pillow.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    return [(row["caption"], each and colour_of(each)) for row, each in zip(rows, images, strict=True)]


DONE = [colour for colour in ROWS if colour not in SLOW]
DOUBLE = [(colour, colour) for colour in ROWS]


def test_a_caption_keeps_its_image(captioned: Runs, tmp_path: Path):
    whole = captioned("whole")
    assert reported(whole) == DOUBLE
    assert pushed(whole, tmp_path / "pushed") == DOUBLE

    stopped = captioned("stopped", stopped=True)
    assert reported(stopped) == [(colour, colour) for colour in DONE]

    shards = [captioned(f"shards/{number}", shard=f"{number}/2") for number in (0, 1)]
    for number, shard in enumerate(shards):
        assert reported(shard) == DOUBLE[number::2]
    merge(shards, tmp_path / "merged")
    assert reported(tmp_path / "merged") == DOUBLE
    assert pushed(tmp_path / "merged", tmp_path / "again") == DOUBLE

    both = [([colour, colour], colour) for colour in ROWS]
    assert compared(tmp_path / "0", whole, tmp_path / "merged") == both
    some = [([colour, colour if colour in DONE else None], colour) for colour in ROWS]
    assert compared(tmp_path / "1", whole, stopped) == some
    assert compared(tmp_path / "2", stopped, whole) == [([each, each], each) for each in DONE]
    assert compared(tmp_path / "3", shards[1], whole) == both[1::2]
    assert compared(tmp_path / "4", shards[1], shards[0]) == [
        ([colour, None], colour) for colour in ROWS[1::2]
    ]


def swapped(folder: Path) -> None:
    """The red image of row 1 and the green one of row 3 in each other's place."""
    one, other = (folder / name for name in ("1.png", "3.png"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


REPLACED = [("grey", "grey"), ("red", "it was replaced after it was captioned"), ("grey", "grey")]


@pytest.mark.parametrize("seen", [True, False])
def test_an_image_that_was_replaced_is_not_shown(compose: Compose, tmp_path: Path, seen: bool):
    settings = settings_of(compose, *jsonl(tmp_path))
    shards = []
    for number in (0, 1):
        data = replace(settings.data, shard=f"{number}/2")
        shards.append(caption(replace(settings, data=data, output=str(tmp_path / "shards" / str(number)))))
    merge(shards, tmp_path / "before")
    swapped(tmp_path)
    if not seen:  # as after a run whose steps did not look at the images: only the files' times differ
        for folder in (*shards, tmp_path / "before"):
            path = folder / "journal.jsonl"
            path.write_text(re.sub(r'"image": "[0-9a-f]{40}"', '"image": ""', path.read_text()))
    summary = merge(shards, tmp_path / "after")
    for folder in ("before", "after"):
        assert reported(tmp_path / folder)[:3] == REPLACED
        assert reported(tmp_path / folder)[4:] == DOUBLE[4:]
    assert "Images left out of dataset/: 2 (it was replaced" in " ".join(summary.notes)
    left = [None if number in (1, 3) else colour for number, colour in enumerate(ROWS)]
    assert pushed(tmp_path / "after", tmp_path / "pushed") == list(zip(ROWS, left, strict=True))

    again = caption(replace(settings, output=str(tmp_path / "again")))
    now = [DOUBLE[0], ("green", "green"), DOUBLE[2], ("red", "red"), *DOUBLE[4:]]
    assert reported(again) == now
    both = compared(tmp_path / "compared", again, tmp_path / "before")
    alone = [(["green", None], "green"), (["red", None], "red")]
    # Yellow and the others are unchanged; green is at a position where it was not before.
    assert both[0] == (["grey", "grey"], "grey")
    assert both[4:] == [([colour, colour], colour) for colour in ROWS[4:]]
    assert (both[1], both[3]) == ((["green", "green"], "green") if seen else alone[0], alone[1])


def test_rows_added_in_front_do_not_take_the_images_of_others(compose: Compose, tmp_path: Path):
    made = caption(settings_of(compose, *jsonl(tmp_path)))
    lines = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(f'{{"image": "10.png"}}\n{lines}')
    found = reported(made)
    replaced = "it was replaced after it was captioned"
    assert all(shown in (said, replaced) for said, shown in found)
    assert found.count(("grey", "grey")) == 0, "rows that share a file have all moved"


def test_a_folder_without_ids_shows_images_with_unique_names(compose: Compose, tmp_path: Path):
    data = jsonl(tmp_path)
    made = caption(settings_of(compose, *data))
    rows = captions(made)
    for row in rows:
        del row["row_id"]
    (made / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    journal = [json.loads(line) for line in (made / "journal.jsonl").read_text().splitlines()]
    for record in journal:
        record.pop("id", None), record.pop("image", None)
    (made / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in journal))
    unknown = AMBIGUOUS
    assert reported(made) == [(each, unknown if each == "grey" else each) for each in ROWS]
    again = caption(settings_of(compose, *data, "output=again"))
    shown = compared(tmp_path / "compared", again, made)
    assert shown == [([each, None if each == "grey" else each], each) for each in ROWS]

    # It resumes with what it has; only new rows have ids.
    (tmp_path / "11.png").write_bytes(an_image(COLOURS["cyan"]))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('\n{"image": "11.png"}')
    caption(settings_of(compose, *data))
    assert [row["row_id"] for row in captions(made)] == [None] * len(ROWS) + ["11"]
    assert reported(made)[-1] == ("cyan", "cyan")


def test_an_interrupted_run_keeps_its_images(
    compose: Compose, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = settings_of(compose, *saved(tmp_path))
    settings.rows_in_flight = 2
    count = 0

    async def answer(request: Request) -> str:
        nonlocal count
        count += 1
        if count == 4:
            await interrupt(caplog)
        assert request.prompt.image
        return colour_of(request.prompt.image.pixels)

    summary = run(settings, engines={"vlm": Scripted(answer)})
    assert (summary.status, 4 <= summary.done < len(ROWS)) == ("interrupted", True)
    assert reported(Path(settings.output)) == DOUBLE[: summary.done]


def test_scenes_keep_their_images(compose: Compose):
    def small(pixels: Pillow.Image) -> np.ndarray:
        return np.asarray(pixels.convert("RGB").resize((16, 16), Pillow.Resampling.BOX), float)

    settings = settings_of(compose, "data.count=6", "data.seed=3", "data.shard=1/2")
    own = [row.open_image() for row in open_source(replace(settings.data, shard=None))]
    numbers = {image.hash: number for number, image in enumerate(own)}
    run(settings, engines={"vlm": Scripted(lambda request: str(numbers[request.prompt.image.hash]))})
    page = write_report(Path(settings.output))
    texts = ["".join(each["text"] for each in row["sections"][-1]["texts"]) for row in blocks(page, "rows")]
    assert texts == ["1", "3", "5"]
    for text, cell in zip(texts, blocks(page, "images"), strict=True):
        shown = small(Pillow.open(io.BytesIO(base64.b64decode(cell["webp"]))))
        assert np.argmin([np.abs(small(image.pixels) - shown).mean() for image in own]) == int(text)
