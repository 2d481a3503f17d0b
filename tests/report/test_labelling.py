"""The labelling mode: what is drawn, and a real browser from the first key to a run that keeps a promise."""

import io
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, says
from PIL import Image as Pillow
from runs import Command, Compose, roles

from scalecap.report import labelling, thumbnails
from scalecap.report.labelling import draw
from scalecap.report.run_page import write_report
from scalecap.run.folder import Run
from scalecap.runner import run

Browser = Callable[..., AbstractAsyncContextManager[Any]]


def row(number: int, scores: list[tuple[str, float | None]], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "p_yes": p, "kept": True} for text, p in scores]
    return {"row_id": f"r{number}", "image": f"{number}.png", "check_scores": found, "error": None, **more}


ROWS = [row(n, [(f"a {n}", 0.9), (f"b {n}", 0.5 + n / 100), (f"c {n}", 0.2)]) for n in range(40)]


def test_one_statement_of_each_image_is_drawn_at_random():
    drawn = draw(ROWS)
    (step,) = drawn["steps"]
    assert (drawn["draw"], drawn["seed"], step["step"]) == ("random", 0, "check")
    assert sorted(number for number, *_ in step["statements"]) == list(range(40))
    assert all(text.endswith(f" {number}") for number, _, text in step["statements"])
    assert all(row_id == f"r{number}" for number, row_id, _ in step["statements"])
    letters = [text[0] for *_, text in step["statements"]]
    assert all(letters.count(letter) >= 6 for letter in "abc")
    assert draw(ROWS) == drawn
    assert draw(ROWS, 1)["steps"][0]["statements"] != step["statements"]
    assert draw(ROWS, 1)["steps"][0]["run"] == step["run"]  # the statements drawn from are the same


def test_what_cannot_be_drawn_is_left_out():
    rows = [
        row(0, [("a", 0.9)]),
        row(1, [("b", 0.9)], error={"step": "x"}),
        row(2, []),
        row(3, [("d", None)]),
        {"image": "of an earlier version", "check_scores": ROWS[0]["check_scores"]},
    ]
    assert sorted(text for *_, text in draw(rows)["steps"][0]["statements"]) == ["a", "d"]
    assert draw([row(0, [("a", None)])])["steps"] == []  # a check without P(yes)


def test_only_checks_that_can_be_calibrated_are_drawn_from():
    rows = [each | {"repaired_scores": each["check_scores"]} for each in ROWS]
    steps: dict[str, dict[str, Any]] = {"check": {"stage": "verify"}, "repaired": {"stage": "choose"}}
    assert [each["step"] for each in draw(rows, steps=steps)["steps"]] == ["check"]
    for rounds, found in ((None, []), (8, []), (1, ["check"])):
        steps["check"] = {"stage": "verify", "adds_to": "known", "rounds": rounds}
        assert [each["step"] for each in draw(rows, steps=steps)["steps"]] == found
    assert [each["step"] for each in draw(rows)["steps"]] == ["check", "repaired"]


def test_the_least_certain_come_first_on_request():
    drawn = draw([*ROWS[1:], row(0, [("sure", 0.99), ("not answered", None)])], uncertain=True)
    assert drawn["draw"] == "uncertain"
    assert [text for *_, text in drawn["steps"][0]["statements"]][:3] == ["not answered", "b 1", "b 2"]


def test_images_that_are_labelled_first_are_large(monkeypatch: pytest.MonkeyPatch, hostile: Path):
    monkeypatch.setattr(thumbnails, "SIZES", ((2, 24), (100, 8)))
    monkeypatch.setattr(thumbnails, "PIXELS_PER_BYTE", 0.01)  # so that tiny images are not compressed further
    run = Run(hostile, "run")
    shown = thumbnails.thumbnails(run, list(run.rows()), large={5, 7})
    sides = [max(Pillow.open(io.BytesIO(each)).size) for each in shown if isinstance(each, bytes)]
    assert sorted(sides, reverse=True) == [24, 24] + [8] * 56
    monkeypatch.setattr(labelling, "LARGE_IMAGES", 3)
    steps = draw(ROWS)["steps"]
    assert labelling.large({"steps": steps}) == {number for number, *_ in steps[0]["statements"][:3]}


async def label(page: Any, count: int) -> None:
    """Labels this many statements by their texts: cats are not there."""
    for _ in range(count):
        await page.wait_for_function("() => document.getElementById('label-text').innerText")
        text = await page.inner_text("#label-text")
        before = await page.inner_text("#label-count")
        await page.keyboard.press("n" if "cat" in text else "y")
        await page.wait_for_function(
            "before => document.getElementById('label-count').innerText !== before", arg=before
        )


async def wait_for_text(page: Any, place: str, words: str) -> None:
    """Waits until the element has these words: a statement is shown once its image is."""
    await page.wait_for_function(
        "([place, words]) => document.getElementById(place).innerText.includes(words)", arg=[place, words]
    )


async def test_from_keys_to_a_promise(
    hostile: Path,
    browser: Browser,
    compose: Compose,
    tmp_path: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
):
    async with browser(hostile / "report.html") as page:
        await page.get_by_role("button", name="Label statements").click()
        assert await page.locator("article:visible").count() == 0
        assert not await page.locator(".scored:visible").count()  # no P(yes) is visible
        assert await page.evaluate("document.activeElement.id") == "label-title"
        await page.get_by_label("Your name").fill("Ad")
        await page.keyboard.type("a\n")  # part of the name; afterwards keys are verdicts again
        await page.keyboard.press("j")  # does not navigate
        await wait_for_text(page, "label-count", "0 of 58 labelled")
        await label(page, 20)
        assert "20 of 58 labelled" in await page.inner_text("#label-count")
        before = await page.inner_text("#label-text")
        await page.keyboard.press("?")
        await wait_for_text(page, "label-count", "1 unsure")
        await page.keyboard.press("u")
        await wait_for_text(page, "label-count", "20 of 58 labelled")
        assert await page.inner_text("#label-text") == before
        await page.reload()
        await page.get_by_role("button", name="Label statements").click()
        await wait_for_text(page, "label-count", "20 of 58 labelled")
        assert await page.inner_text("#label-text") == before
        assert await page.input_value("#label-author") == "Ada"
        await page.wait_for_selector("#label-image img")
        assert await page.locator("#label-image img").evaluate("each => each.naturalWidth") == 30
        await label(page, 37)
        await page.get_by_role("button", name="Yes").click()  # the last, whatever the right verdict is
        await wait_for_text(page, "label-count", "58 of 58 labelled")
        await page.get_by_role("button", name="Undo").click()
        await wait_for_text(page, "label-count", "57 of 58 labelled")
        await label(page, 1)
        await wait_for_text(page, "label-text", "All statements in the sample are labelled.")
        assert await page.get_by_role("button", name="Yes").is_disabled()
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Download labels.jsonl").click()
        download = await waiting.value
        assert download.suggested_filename == "labels.jsonl"
        await download.save_as(tmp_path / "labels.jsonl")
        await page.keyboard.press("Escape")
        assert await page.locator("article:visible").count() > 0
        assert await page.evaluate("document.activeElement.id") == "label-open"
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert len({each["row_id"] for each in labels}) == 58
    assert {(each["author"], each["step"], each["draw"]) for each in labels} == {
        ("Ada", "golden_sentences", "random")
    }
    assert {each["text"]: each["verdict"] for each in labels} == {HOSTILE: "yes", "There is a cat.": "no"}

    assert command("calibrate", hostile, "--labels", tmp_path / "labels.jsonl", "--wrong", "0.2") == 0
    assert "golden_sentences: 58 labels, one per image" in capsys.readouterr().out
    async with browser(write_report(hostile)) as page:
        region = page.get_by_role("region", name="Calibration of golden_sentences")
        await region.locator("canvas").wait_for()
        assert "0.900\t1.000 (" in await region.locator("table").inner_text()

    rows = f"data.path={tmp_path}/rows.jsonl"
    promise = (f"calibration={hostile}/calibration.json", "wrong=0.2", f"output={tmp_path}/promised")
    summary = run(
        compose("data=jsonl", rows, "report=true", "cache=off", *promise),
        engines=roles(says),
        command="python -m scalecap x",
    )
    assert "wrong with a probability of at most 20 %" in summary.screen()
    async with browser(tmp_path / "promised" / "report.html") as page:
        await page.get_by_text("Run summary").click()
        assert "with a probability of at most 20 %" in await page.inner_text("header")


async def test_no_statement_is_labelled_before_it_is_shown(hostile: Path, browser: Browser):
    async with browser(hostile / "report.html") as page:
        await page.get_by_role("button", name="Label statements").click()
        await page.wait_for_selector("#label-image img")
        press = "window.dispatchEvent(new KeyboardEvent('keydown', {key: 'y'}));"
        await page.evaluate(f"() => {{ {press * 3} }}")  # faster than the next image loads
        await page.wait_for_function("() => /^[1-9]/.test(document.getElementById('label-count').innerText)")
        assert "1 of 58 labelled" in await page.inner_text("#label-count")
        await label(page, 1)
        assert "2 of 58 labelled" in await page.inner_text("#label-count")


async def test_each_check_is_labelled_separately(hostile: Path, browser: Browser):
    async with browser(hostile / "report.html", 360, scheme="dark") as page:
        await page.get_by_role("button", name="Label statements").click()
        await label(page, 3)
        await page.get_by_label("Check").select_option(label="final details")
        await wait_for_text(page, "label-count", "0 of 58 labelled")
        await label(page, 2)
        await page.get_by_label("Check").select_option(label="golden sentences")
        await wait_for_text(page, "label-count", "3 of 58 labelled")
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        for name in ("Yes", "No", "Unsure"):
            box = await page.get_by_role("button", name=name, exact=False).first.bounding_box()
            assert box["height"] >= 44  # for a thumb
        assert await page.locator("#label-text[aria-live=polite]").count() == 1


async def test_a_browser_without_storage_shows_a_warning(hostile: Path, browser: Browser):
    async with browser(hostile / "report.html") as page:
        await page.evaluate("(Storage.prototype.setItem = () => { throw new Error(0); }, null)")
        await page.get_by_role("button", name="Label statements").click()
        await label(page, 2)
        assert "2 of 58 labelled" in await page.inner_text("#label-count")
        assert "download the labels before you leave" in await page.inner_text("#label-warning")


async def test_labels_of_the_least_certain_statements_promise_nothing(hostile: Path, browser: Browser):
    page_of = write_report(hostile, uncertain=True)
    async with browser(page_of) as page:
        await page.get_by_role("button", name="Label statements").click()
        assert "no guarantee can be made from these labels" in await page.inner_text("#label")
