"""The Python interface: images in, columns out, by the same run as the command line's."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow
from runs import Command, Rows, captions

import scalecap
from scalecap import Captioner, CaptionError, FolderError, RunError, SettingsError
from scalecap.engines.base import Choose, Chosen, Request
from scalecap.engines.scripted import Scripted
from scalecap.report.run_page import write_report
from scalecap.report.thumbnails import thumbnails
from scalecap.scenes.world import SAMPLE


def an_image(colour: int) -> Pillow.Image:
    return Pillow.new("RGB", (30, 30), (colour, 0, 0))


@pytest.fixture
def captioner(opened: list[Any]) -> Iterator[Captioner]:
    """On the scripted engine."""
    with Captioner("some/model", pipeline="seed", progress=False) as captioner:
        yield captioner


@pytest.fixture
def colour(opened: list[Any], engines: dict[str, Scripted], answer: Callable[[Request], Any]) -> None:
    """The scripted model names an image's red value in its first caption."""

    def by_colour(request: Request) -> Any:
        if request.prompt.image and "Describe the fine" in request.prompt.text:
            return f"Red is {request.prompt.image.pixels.getpixel((0, 0))[0]}."
        return answer(request)

    engines["vlm"] = Scripted(by_colour)


def forms(folder: Path) -> dict[str, Any]:
    """The same three images in each form that `map` takes."""
    images = [an_image(10 * number) for number in range(3)]
    paths = [folder / f"{number}.png" for number in range(3)]
    for each, path in zip(images, paths, strict=True):
        each.save(path)
    rows = [{"image": each, "name": f"n{number}"} for number, each in enumerate(images)]
    dataset = datasets.Dataset.from_list(rows)
    return {
        "dataset": dataset,
        "stream": dataset.to_iterable_dataset(),
        "frame": pd.DataFrame(rows),
        "mappings": rows,
        "paths": paths,
        "names": [str(path) for path in paths],
        "pil": images,
    }


@pytest.mark.usefixtures("colour")
@pytest.mark.parametrize("form", ["dataset", "stream", "frame", "mappings", "paths", "names", "pil"])
def test_each_form_comes_back_with_its_images_and_captions(form: str, tmp_path: Path):
    with Captioner("some/model", pipeline="seed", progress=False) as captioner:
        out = captioner.map(forms(tmp_path)[form], output=tmp_path / "run")
    assert [row["image"].getpixel((0, 0))[0] for row in out] == [0, 10, 20]
    assert out["init_caption"][:] == ["Red is 0.", "Red is 10.", "Red is 20."]
    assert out["row_id"] == ["0", "1", "2"]
    assert out["error"] == [None] * 3
    if "name" in out.column_names:
        assert out["name"] == ["n0", "n1", "n2"]
    assert captioner.summary is not None
    assert captioner.summary.done == 3


def test_the_same_folder_resumes_and_another_pipeline_is_refused(captioner: Captioner, tmp_path: Path):
    images = [an_image(number) for number in range(4)]
    captioner.map(images[:2], output=tmp_path / "run")
    captioner.map(images, output=tmp_path / "run")
    assert captioner.summary is not None
    assert captioner.summary.reused == 2
    with (
        Captioner("some/model", pipeline="default", progress=False) as other,
        pytest.raises(RunError, match="another config"),
    ):
        other.map(images, output=tmp_path / "run")


def test_one_image_is_a_dict_of_columns(captioner: Captioner, tmp_path: Path):
    an_image(5).save(tmp_path / "cat.png")
    row = captioner(tmp_path / "cat.png")
    assert row["golden_sentences"] == ["There is a dog."]
    assert row["image"] == str(tmp_path / "cat.png")
    assert captioner(an_image(5))["final_caption"] == row["final_caption"]
    assert not (tmp_path / "outputs").exists()


def test_columns_beside_the_image_are_read_by_steps(opened: list[Any]):
    step = {"stage": "parse_questions", "text": "notes"}
    with Captioner("m", pipeline={"steps": {"more": step}}, progress=False) as captioner:
        row = captioner({"image": an_image(1), "notes": "Describe more details about the dog."})
        assert row["more"][0] == "Describe more details about the dog."
        with pytest.raises(RunError, match="notes"):
            captioner(an_image(1))


async def test_an_async_program_awaits_many_at_once_with_one_model(captioner: Captioner, opened: list[Any]):
    rows = await asyncio.gather(*(captioner.acaption(an_image(number)) for number in range(5)))
    assert [row["golden_sentences"] for row in rows] == [["There is a dog."]] * 5
    assert len(opened) == 1
    assert captioner(an_image(9))["golden_sentences"] == ["There is a dog."]  # inside of a running loop


def test_an_image_that_fails_says_where_and_a_row_of_a_set_keeps_its_reason(
    captioner: Captioner, tmp_path: Path
):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(CaptionError, match=r"bad\.png"):
        captioner(tmp_path / "bad.png")
    with pytest.raises(CaptionError, match="expected the path or bytes of an image, got ndarray"):
        captioner(np.asarray(an_image(1)))
    out = captioner.map([tmp_path / "bad.png", an_image(1)], output=tmp_path / "run")
    assert out["error"][0]["step"] == "image"
    assert out["golden_sentences"][1] == ["There is a dog."]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (datasets.DatasetDict(), "one split"),
        ("cat.jpg", r"captioner\(image\)"),
        ([], "no rows"),
        ([{"photo": "a.png"}], "image='?image'?: .*no such column; available: photo"),
        ([3], "row 0: expected a path"),
        (datasets.Dataset.from_dict({"text": ["a"]}), "image=image: .*no such column; available: text"),
    ],
)
def test_unsupported_data_is_refused(data: Any, message: str, captioner: Captioner):
    with pytest.raises(RunError, match=message):
        captioner.map(data)


@pytest.mark.parametrize("name", ["~/models/qwen", "/mödels/a (1)", "/models/a,b=c", 'it\'s "x"', "me/model"])
def test_a_model_may_have_any_name(name: str):
    with Captioner(name) as captioner:
        assert captioner.settings.model.vlm.name == name


def test_wrong_settings_are_refused_before_a_model_loads(opened: list[Any]):
    with pytest.raises(SettingsError, match=r"sampling\.temprature"):
        Captioner(sampling={"temprature": 1})
    with pytest.raises(RunError, match="verfy"):
        Captioner(pipeline={"steps": {"x": {"stage": "verfy"}}})
    assert opened == []


@pytest.mark.parametrize(
    ("words", "values", "key"),
    [
        (("data.limit=5",), {}, "data.limit"),
        ((), {"data": {"id": "k"}}, "data.id"),
        ((), {"data": "folder"}, "data"),
        ((), {"output": "runs/x"}, "output"),
    ],
)
def test_settings_that_map_takes_as_arguments_are_not_ignored(words: Any, values: dict[str, Any], key: str):
    with pytest.raises(SettingsError, match=rf"^{key}: .* arguments of captioner\.map"):
        Captioner("m", *words, **values)


@pytest.mark.usefixtures("opened")
def test_a_url_is_fetched_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    an_image(3).save(tmp_path / "a.png")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (tmp_path / "a.png").open("rb"))
    url = "https://localhost/a.png"
    for allowed in (False, True):
        with Captioner("m", pipeline="direct", progress=False, data={"allow_urls": allowed}) as captioner:
            (row,) = captioner.map([url], output=tmp_path / str(allowed)).to_list()
            assert (row["error"] is None) == allowed
            if allowed:
                assert captioner(url)["final_caption"]
                continue
            with pytest.raises(CaptionError, match=r"set data\.allow_urls=true"):
                captioner(url)


def test_a_report_is_made_of_images_in_memory_and_shown_inline(captioner: Captioner, tmp_path: Path):
    with pytest.raises(RunError, match="no run yet"):
        captioner.report()
    captioner.map([an_image(200)], output=tmp_path / "run")
    report = captioner.report()
    assert report.path == tmp_path / "run" / "report.html"
    assert "iframe" in report._repr_html_()
    assert "no longer in the data" not in report.path.read_text()


@pytest.mark.parametrize("form", ["stream", "frame", "mappings", "paths", "names", "pil"])
def test_the_report_of_a_run_made_from_python_can_be_written_again(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    captioner.map(forms(tmp_path)[form], output=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    write_report(Path("run"))
    rows = list(scalecap.open_run("run").rows())
    found = thumbnails(scalecap.open_run("run"), rows)
    known = form in ("stream", "paths", "names")
    assert [isinstance(each, bytes) for each in found] == [known] * 3


def test_a_run_made_from_python_is_a_run(captioner: Captioner, tmp_path: Path):
    captioner.map([an_image(1), an_image(2)], output=tmp_path / "run")
    run = scalecap.open_run(tmp_path / "run")
    assert [row["row_id"] for row in run.rows()] == ["0", "1"]
    assert run.summary["rows"]["done"] == 2
    assert run.overrides["model.vlm.name"] == "some/model"
    assert run.config["data"]["source"] == "memory"
    with pytest.raises(FolderError, match="holds no run"):
        scalecap.open_run(tmp_path / "absent")


def test_the_embedded_model_warns_of_images_that_are_not_of_its_world(
    opened: list[Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    sample = sorted(SAMPLE.glob("*.jpg"))[:2]
    with Captioner(progress=False) as captioner:
        captioner(sample[0])
        captioner({"image": str(sample[1])})
        captioner.map(sample, output=tmp_path / "sample")
        assert captioner.summary
        assert not captioner.summary.notes
        assert "knows its own world" not in caplog.text
        captioner(an_image(1))
        captioner(an_image(2))
        assert caplog.text.count("knows its own world") == 1
        captioner.map([an_image(1)], output=tmp_path / "other")
        assert "knows its own world" in captioner.summary.screen()


def test_leaving_the_block_closes_the_model(opened: list[Any]):
    with Captioner("m", pipeline="seed", progress=False) as captioner:
        captioner(an_image(1))
    with pytest.raises(RunError, match="closed"):
        captioner(an_image(1))
    with pytest.raises(RunError, match="closed"):
        captioner.map([an_image(1)])


def test_a_custom_prompt_reaches_the_model(opened: list[Any], prompts: list[str]):
    with Captioner(
        "m", pipeline="default", prompts={"verify": "Own words: {{ text }}"}, progress=False
    ) as own:
        own(an_image(3))
    assert any(text.startswith("Own words: There is a") for text in prompts)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch, engines: dict[str, Scripted]) -> list[str]:
    """Texts of the prompts that reach the scripted engine."""
    texts: list[str] = []
    script = engines["vlm"]._answer

    def record(request: Request) -> Any:
        texts.append(request.prompt.text)
        return script(request)

    monkeypatch.setattr(engines["vlm"], "_answer", record)
    return texts


def test_captions_are_as_the_command_line_writes_them(
    captioner: Captioner, typed: Command, rows: Rows, tmp_path: Path
):
    words = ["model=own", "model.vlm.name=some/model", "pipeline=seed", "data=jsonl", rows(3)]
    assert typed(*words, f"output={tmp_path}/cli", "progress=false") == 0
    own = captioner.map([str(tmp_path / f"{number}.png") for number in range(3)], output=tmp_path / "python")
    for column in ("init_caption", "golden_sentences", "q_list", "final_details", "final_caption"):
        assert own[column] == [row[column] for row in captions("cli")]


@pytest.mark.usefixtures("opened")
def test_one_image_has_the_same_minimum_mass_as_a_run(
    engines: dict[str, Scripted], answer: Callable[[Request], Any]
):
    """A yes whose options have too little probability mass keeps nothing, here as there."""

    def says(request: Request) -> Any:
        return Chosen((0.9, 0.1), mass=0.01) if isinstance(request, Choose) else answer(request)

    engines["vlm"] = Scripted(says)
    for least, kept in ((0.1, []), (0.0, ["There is a dog.", "There is a cat."])):
        words = {"min_mass": least, "cache": False}
        with Captioner("some/model", pipeline="seed", progress=False, **words) as captioner:
            assert captioner(an_image(10))["golden_sentences"] == kept
