"""What goes into the pages: parts of a row, origins, differences, images, sizes."""

import base64
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from runs import Command, Compose, Rows, captions, roles

from scalecap.data.images import open_image
from scalecap.engines.base import Choose, Chosen, Request
from scalecap.engines.scripted import Scripted
from scalecap.report import thumbnails as images
from scalecap.report.comparison import Comparison
from scalecap.report.comparison_page import difference
from scalecap.report.row import origins, row_view
from scalecap.report.run_page import calibration, write_report
from scalecap.report.thumbnails import thumbnails
from scalecap.rows import Row
from scalecap.run.folder import FolderError, Run, read_runs
from scalecap.runner import run


def packed(path: Path, name: str) -> Any:
    """The value in one of the page's blocks."""
    found = re.search(rf'id="data-{name}">([^<]*)<', path.read_text(encoding="utf-8"))
    assert found, name
    return json.loads(gzip.decompress(base64.b64decode(found[1])))


def test_a_run_writes_its_report_when_small_or_requested(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = tmp_path / "run" / "report.html"
    summary = run(compose("data.limit=2"), engines=engines)
    assert summary.report == report
    assert str(report) in summary.screen()
    report.unlink()
    assert run(compose("data.limit=2", "report=false"), engines=engines).report is None
    assert not report.exists()
    monkeypatch.setattr("scalecap.runner.MAX_ROWS_FOR_REPORT", 1)
    summary = run(compose("data.limit=2"), engines=engines)
    assert summary.report is None
    assert "scalecap report" in summary.screen()
    assert run(compose("data.limit=2", "report=true"), engines=engines).report == report


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ({"p_yes": 0.1}, "P(yes) 0.100 is below 0.5"),
        ({"p_yes": 0.4999}, "P(yes) 0.4999 is below 0.5"),
        ({"p_yes": 0.6, "options": []}, "P(yes) 0.600, but “None of these.” is likelier"),
        ({"likelihood": 0.0001234}, "likelihood 0.00012 is below 0.5"),
        ({"p_yes": 0.98, "votes": {"rated_scores": False, "yes_scores": True}}, "not kept by rated"),
        ({"p_yes": None, "checked": False}, "not checked: the limit of requests was reached"),
        ({"p_yes": None, "checked": False, "text": " "}, "not checked: it is empty"),
        ({"p_yes": None, "mass": 0.02}, "unanswered: yes and no together have a probability of only 0.020"),
        ({"p_yes": None}, "the model did not answer yes"),
    ],
)
def test_a_dropped_text_has_the_reason(score: dict[str, Any], reason: str, tmp_path: Path):
    (tmp_path / ".hydra").mkdir()
    step = {"stage": "verify", "threshold": 0.5}
    (tmp_path / ".hydra" / "config.yaml").write_text(json.dumps({"pipeline": {"steps": {"kept": step}}}))
    row = {"kept": [], "kept_scores": [{"text": "A cat.", "kept": False, **score}]}
    ((text,),) = [section["texts"] for section in row_view(Run(tmp_path, "run"), row)["sections"]]
    assert text["reason"] == reason


def test_a_failed_report_does_not_fail_the_run(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path, caplog: Any
):
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    summary = run(compose("data.limit=2"), engines=engines)
    assert (summary.exit_code, summary.report) == (0, None)
    assert "no report.html" in caplog.text


def test_the_index_has_the_values_to_filter_and_sort_by(
    compose: Compose, engines: dict[str, Scripted], rows: Rows, tmp_path: Path
):
    run(compose("data=jsonl", rows(3, broken=(1,))), engines=engines)
    index = packed(tmp_path / "run" / "report.html", "index")
    tags = [[index["tags"][tag] for tag in own] for own, _ in index["rows"]]
    assert tags[0] == ["golden_sentences: dropped some", "final_details: kept all"]
    assert tags[1] == ["failed", "failed at image: unreadable_image"]
    assert index["numbers"] == ["dropped share", "caption length"]
    assert [values for _, values in index["rows"]] == [[0.25, 3], [None, None], [0.25, 3]]


def test_images_are_found_whichever_rows_are_left(
    compose: Compose, engines: dict[str, Scripted], rows: Rows, tmp_path: Path
):
    run(compose("data=jsonl", rows(5, broken=(1,))), engines=engines)
    made = Run(tmp_path / "run", "run")
    kept = [row for number, row in enumerate(made.rows()) if number != 2]
    (tmp_path / "4.png").unlink()
    found = thumbnails(made, kept)
    assert [isinstance(each, bytes) for each in found] == [True, False, True, False]
    assert "is not an image" in str(found[1])
    assert "no such file" in str(found[3])
    (tmp_path / "rows.jsonl").unlink()
    assert "rows.jsonl" in str(thumbnails(made, kept)[0])


def test_equal_rows_and_embedded_scenes_have_their_images(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    run(compose("data.count=3", "data.seed=5"), engines=engines)
    made = Run(tmp_path / "run", "run")
    assert all(isinstance(each, bytes) for each in thumbnails(made, [*made.rows()]))


def test_the_working_folder_of_the_run_is_remembered(
    typed: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    (tmp_path / "photos").mkdir()
    Pillow.new("RGB", (2000, 1000), "red").save(tmp_path / "photos" / "a.png")
    assert typed("data=folder", "data.path=photos", "output=out", "report=false") == 0
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "photos").mkdir(parents=True)  # with an image of the same name, which is not the run's
    Pillow.new("RGB", (20, 20), "blue").save(elsewhere / "photos" / "a.png")
    monkeypatch.chdir(elsewhere)
    assert typed("report", tmp_path / "out") == 0
    assert "report.html" in capsys.readouterr().out
    (cell,) = packed(tmp_path / "out" / "report.html", "images-0")
    with Pillow.open(io.BytesIO(base64.b64decode(cell["webp"]))) as image:
        assert image.size == (448, 224)


def test_a_folder_without_captions_gives_one_message(tmp_path: Path, command: Command, capsys: Any):
    with pytest.raises(FolderError, match=r"captions\.jsonl"):
        write_report(tmp_path)
    assert command("report", tmp_path) == 1
    assert "expected the folder of a run" in capsys.readouterr().err


@pytest.mark.parametrize("side", [side for _, side in images.SIZES])
def test_a_thumbnail_is_bounded_in_pixels_and_bytes(tmp_path: Path, side: int):
    noise = np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8)
    Pillow.fromarray(noise).save(tmp_path / "noise.png")
    row = Row(0, {}, lambda: open_image(str(tmp_path / "noise.png")))
    found = images._thumbnail(row, "", None, side)
    assert isinstance(found, bytes)
    assert len(found) <= side * side / 6
    with Pillow.open(io.BytesIO(found)) as image:
        assert side / 4 < image.width <= side


def test_thumbnails_shrink_as_rows_grow():
    assert [images.thumbnail_size(rows) for rows in (1, 200, 201, 1_000_000)] == [448, 448, 320, 192]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("A dog.", "A dog.", [(0, "A dog.")]),
        ("A dog.", "A big dog.", [(0, "A "), (1, "big "), (0, "dog.")]),
        (
            "A red dog runs.",
            "A dog ran.",
            [(0, "A "), (-1, "red "), (0, "dog "), (-1, "runs"), (1, "ran"), (0, ".")],
        ),
        ("一只狗。", "一只猫。", [(0, "一只"), (-1, "狗"), (1, "猫"), (0, "。")]),
        ("", "New.", [(1, "New.")]),
        ("Old.", "", [(-1, "Old.")]),
    ],
)
def test_captions_are_compared_by_words(first: str, second: str, found: list[tuple[int, str]]):
    assert difference(first, second) == found


def test_captions_that_differ_in_punctuation_alone_differ(tmp_path: Path):
    for name, caption in (("a", "A dog. A cat."), ("b", "A dog, a cat."), ("c", "A dog. A cat!")):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        row = {"image": "0.png", "final_caption": caption, "row_id": "0"}
        (tmp_path / name / "captions.jsonl").write_text(json.dumps(row) + "\n")
        record = {"index": 0, "id": "0", "stamp": "", "image": "h", "input": {}}
        (tmp_path / name / "journal.jsonl").write_text(json.dumps(record) + "\n")
    for other in "bc":
        Comparison(read_runs([tmp_path / "a", tmp_path / other])).save(tmp_path)
        index = packed(tmp_path / "comparison.html", "index")
        assert [[index["tags"][tag] for tag in own] for own, _ in index["rows"]] == [["captions differ"]]


def test_a_difference_holds_the_whole_second_text():
    first, second = "One, two — three\nfour.", "Zero, two –  three\n\nfive! 4.5 <b>"
    assert "".join(text for sign, text in difference(first, second) if sign >= 0) == second


def test_sentences_of_the_final_caption_name_their_source():
    scored = {
        "golden": [{"text": "A dog runs.", "kept": True}, {"text": "A cat sleeps.", "kept": False}],
        "details": [{"text": "The dog is brown and small.", "kept": True}],
    }
    caption = "A dog runs.  The dog is small and brown! A cat sleeps. It is a masterpiece of art. 没有。"
    found = origins(caption, scored)
    assert "".join(part["text"] for part in found) == caption
    assert [part.get("source_column") for part in found] == ["golden", "details", "golden", None, None]
    assert [part.get("kept") for part in found] == [True, True, False, None, None]
    assert origins("", scored) == []


def test_a_text_that_a_later_check_of_the_same_texts_dropped_is_no_kept_source():
    def check(**kept: bool) -> list[dict[str, Any]]:
        return [{"text": f"The {name} is red.", "kept": each} for name, each in kept.items()]

    scores = {
        "rated": check(cat=True, dog=True, fox=True),
        "verified": check(cat=True, dog=False, fox=True),
        "details": check(cat=False, sky=True),
        "golden": check(cat=True, dog=False, fox=True),
    }
    found = origins("The cat is red. The dog is red. The fox is red. The sky is red.", scores)
    assert [(each["source_column"], each["kept"]) for each in found] == [
        ("rated", True),
        ("golden", False),
        ("rated", True),
        ("details", True),
    ]


def test_the_check_of_the_caption_itself_is_not_its_source(tmp_path: Path):
    row = {
        "golden_scores": [{"text": "A dog.", "kept": True}],
        "final_caption": "A dog. The sun shines.",
        "closing_scores": [{"text": "The sun shines.", "kept": True}],
    }
    final = next(each for each in row_view(Run(tmp_path, "run"), row)["sections"] if each["kind"] == "final")
    assert [each.get("source_column") for each in final["texts"]] == ["golden", None]


def test_odd_columns_are_shown_as_they_are(compose: Compose, engines: dict[str, Scripted], tmp_path: Path):
    run(compose("data.limit=1", "report=false"), engines=engines)
    path = tmp_path / "run" / "captions.jsonl"
    (row,) = captions()
    row |= {"golden_sentences_scores": [{"text": 3}, None, "x"], "raw_answers": {"a": [1]}, "flags": None}
    path.write_text(json.dumps(row | {"more": [[1], {"b": "</script>"}]}) + "\n")
    (shown,) = packed(write_report(tmp_path / "run"), "rows-0")
    rest = dict(shown["other"])
    assert json.loads(rest["raw_answers"]) == {"a": [1]}
    assert "</script>" in rest["more"]


def test_calibration_counts_statements_by_tenths():
    answers = [(0.05, 0), (0.01, 0), (0.04, 1), (1.0, 1), (0.95, 1), (0.5, 0)]
    said = [*({"p_yes": p, "label": bool(label)} for p, label in answers), {"p_yes": None, "label": True}]
    rows = [{"check_answers": said}] * 2
    low, middle, high = calibration([*rows, {"check_answers": None}, {"qa_answers": [{"right": True}]}])[
        "check"
    ]
    assert (low["x"], low["y"][0], low["label"]) == (pytest.approx(0.1 / 3), pytest.approx(1 / 3), "6")
    assert (middle["x"], middle["y"], middle["label"]) == (0.5, [0, 0, 0], "2")
    assert (high["x"], high["y"], high["label"]) == (pytest.approx(0.975), [1, 1, 1], "4")
    assert calibration([{"image": "a"}]) == {}


def test_an_unanswered_text_says_why_it_was_dropped(
    compose: Compose, answer: Callable[[Request], Any], tmp_path: Path
):
    def says(request: Request) -> Any:
        cat = isinstance(request, Choose) and "cat" in request.prompt.text
        return Chosen((0.9, 0.1), mass=0.02) if cat else answer(request)

    run(compose("data.limit=1"), engines=roles(says))
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    blocks = re.findall(r'id="data-[^"]*">([^<]*)<', page)
    texts = " ".join(gzip.decompress(base64.b64decode(each)).decode() for each in blocks)
    assert "unanswered: yes and no together have a probability of only 0.020" in texts


def dense(request: Request) -> Any:
    """A model whose second draft is the better one, and which gets a ball's colour wrong."""
    text = request.prompt.text
    if isinstance(request, Choose):
        return 0.1 if "red" in text or "cat" in text else 0.9
    if text == "Describe the picture.":
        return "A dog. The ball is red."
    replies = {"Say it otherwise:": "The ball is blue.", "What else is there?": "None", "List the things": ""}
    return next((reply for start, reply in replies.items() if text.startswith(start)), "A dog.")


def test_drafts_parts_and_repaired_claims_are_shown(compose: Compose, tmp_path: Path):
    run(compose("data.limit=1", "pipeline=dense"), engines=roles(dense))
    (row,) = packed(tmp_path / "run" / "report.html", "rows-0")
    parts = {part["column"]: part for part in row["sections"]}
    assert parts["drafts"] == {
        "kind": "drafts",
        "column": "drafts",
        "texts": [{"text": "A dog. The ball is red."}] * 4,
    }
    assert [each["of"] for each in parts["parts"]["regions"]] == [[336, 336]] * 4
    (repaired,) = parts["repaired"]["texts"]
    assert (repaired["replaces"], repaired["text"], repaired["kept"]) == (
        "The ball is red.",
        "The ball is blue.",
        True,
    )
    dropped = [each for each in parts["golden_sentences"]["texts"] if not each["kept"]]
    assert [each["text"] for each in dropped] == ["The ball is red."]


def test_the_selected_draft_is_shown(compose: Compose, tmp_path: Path):
    drafts = iter(["A cat.", "A dog.", "A cat."])

    def says(request: Request) -> Any:
        return next(drafts) if request.prompt.text == "Describe the picture." else dense(request)

    settings = compose("data.limit=1", "pipeline=best_of_n", "pipeline.steps.drafts.samples=3")
    run(settings, engines=roles(says))
    (row,) = packed(tmp_path / "run" / "report.html", "rows-0")
    shown = next(part for part in row["sections"] if part["kind"] == "drafts")
    assert shown["texts"] == [
        {"text": text, "score": score, "taken": text == "A dog."}
        for text, score in (("A cat.", 0.1), ("A dog.", 0.9), ("A cat.", 0.1))
    ]


def test_a_run_is_named_by_the_path_to_type_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "my runs" / "photos"
    folder.mkdir(parents=True)
    assert Run(folder, "photos").shell_path == "'my runs/photos'"
    monkeypatch.chdir(folder)
    assert Run(tmp_path / "my runs" / "photos" / ".." / "photos", "photos").shell_path == "."
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert Run(folder, "photos").shell_path == "photos"
