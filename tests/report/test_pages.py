"""Both pages in a real browser: opened from disk, filtered, sorted, navigated, wide and narrow."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE
from runs import captions, roles

from scalecap.engines.base import Choose
from scalecap.report.comparison import Comparison
from scalecap.report.run_page import write_report
from scalecap.run.folder import read_runs
from scalecap.runner import run

Browser = Callable[..., AbstractAsyncContextManager[Any]]


async def until(page: Any, expression: str, wanted: Any) -> None:
    """Waits until the page's expression has the value."""
    for _ in range(6000):
        found = await page.evaluate(expression)
        if found == wanted:
            return
        await page.wait_for_timeout(10)
    assert found == wanted


async def counted(page: Any, wanted: str) -> None:
    """Waits until the page says that it shows this many rows."""
    await until(page, "document.getElementById('count').textContent", wanted)


async def names(page: Any) -> list[str]:
    return list(
        await page.eval_on_selector_all("article", "all => all.map(each => each.getAttribute('aria-label'))")
    )


async def test_a_report_shows_captions_questions_and_what_was_kept_or_dropped(
    hostile: Path, browser: Browser
):
    async with browser(hostile / "report.html") as page:
        first = page.locator("article").first
        image = first.locator("img")
        assert await image.evaluate("async each => (await each.decode(), each.naturalWidth)") == 30
        text = await first.inner_text()
        assert f"{HOSTILE} There is a cat." in text  # the hostile text is text
        assert await page.locator("article b, article script, img[src=x]").count() == 0
        assert await first.get_by_role("deletion").all_inner_texts() == ["There is a cat."]
        assert "dropped: P(yes) 0.100 is below 0.5" in text
        assert "Describe more details about the position of the dog.\nThe dog is at the left. 0.90" in text
        colours = await first.locator(".scored").evaluate_all(
            "all => all.map(e => getComputedStyle(e).backgroundColor)"
        )
        assert len(set(colours)) == 2
        final = first.locator(".final .from")
        assert await final.last.get_attribute("title") == "from final_details: It is brown."
        assert "init caption" in text
        assert await page.locator("header code").text_content() == "python -m scalecap <b>"


async def test_parts_are_cut_out_of_the_thumbnail(compose: Any, tmp_path: Path, browser: Browser):
    engines = roles(lambda request: 0.9 if isinstance(request, Choose) else "A dog.")
    run(compose("data.limit=1", "pipeline=dense"), engines=engines)
    async with browser(tmp_path / "run" / "report.html") as page:
        frames = page.locator(".region")
        assert await frames.count() == 4
        boxes = await frames.evaluate_all(
            """all => all.map((frame) => {
              const [outer, inner] = [frame, frame.firstChild].map((each) => each.getBoundingClientRect());
              return [(outer.x - inner.x) / inner.width, (outer.y - inner.y) / inner.height,
                outer.width / inner.width, outer.height / inner.height].map((each) => Math.round(each * 336));
            })"""
        )
        assert boxes == [[left, top, 187, 187] for top in (0, 149) for left in (0, 149)]
        assert await page.locator(".drafts li").all_inner_texts() == ["A dog."] * 8


async def test_rows_are_loaded_as_they_are_scrolled_to(hostile: Path, browser: Browser):
    async with browser(hostile / "report.html") as page:
        await counted(page, "60 rows")
        assert await page.locator("article").count() < 30
        for _ in range(6000):
            if await page.locator("article").count() == 60:
                break
            await page.evaluate("scrollTo(0, document.body.scrollHeight)")
            await page.wait_for_timeout(10)
        shown = await names(page)
        assert shown[0] == "Row 1, 0.png"
        assert shown[-1] == "Row 60, 59.png"  # of another block than the first
        assert len(set(shown)) == 60


async def test_a_report_is_searched_filtered_and_sorted(hostile: Path, browser: Browser):
    async with browser(hostile / "report.html") as page:
        await counted(page, "60 rows")
        await page.fill("#search", "57.PNG")
        await counted(page, "1 of 60 rows")
        assert await names(page) == ["Row 58, 57.png"]
        await page.fill("#search", "no such text")
        await counted(page, "0 of 60 rows")
        assert "No matching rows." in await page.inner_text("main")
        await page.fill("#search", "")
        await page.select_option("#tag", label="failed (2)")
        await counted(page, "2 of 60 rows")
        assert await names(page) == ["Row 4, 3.png", "Row 51, 50.png"]
        assert "Failed at image (unreadable_image)" in await page.locator("article").first.text_content()
        await page.select_option("#tag", label="golden_sentences: dropped some (58)")
        await counted(page, "58 of 60 rows")
        options = await page.locator("#sort option").all_inner_texts()
        assert {"dropped share, highest first", "caption length, lowest first"} <= set(options)


async def test_a_report_is_navigated_by_keys(hostile: Path, browser: Browser):
    focused = "document.activeElement.getAttribute('aria-label')"
    async with browser(hostile / "report.html") as page:
        await counted(page, "60 rows")
        steps = [("j", "Row 1, 0.png"), ("j", "Row 2, 1.png"), ("j", "Row 3, 2.png"), ("k", "Row 2, 1.png")]
        for key, wanted in steps:
            await page.keyboard.press(key)
            await until(page, focused, wanted)
        await page.keyboard.press("/")
        assert await page.evaluate("document.activeElement.id") == "search"
        await page.keyboard.type("jk")  # letters typed into the search do not navigate
        assert await page.input_value("#search") == "jk"
        for role, name in (("searchbox", "Search"), ("combobox", "Show"), ("combobox", "Sort")):
            assert await page.get_by_role(role, name=name).count() == 1


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
async def test_pages_fit_and_are_light_or_dark(
    hostile: Path, browser: Browser, tmp_path: Path, width: int, scheme: str
):
    Comparison(read_runs([hostile])).save(tmp_path)
    for path in (hostile / "report.html", tmp_path / "comparison.html"):
        async with browser(path, width, scheme=scheme) as page:
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            red = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
            assert (int(red) > 200) == (scheme == "light")


def contrast(folder: Path) -> None:
    """A run whose check rates words and clauses, with metrics."""
    folder.mkdir()
    scores = [
        {
            "text": "A red dog, on the moon.",
            "kept": True,
            "clauses": [
                {"text": "A red dog,", "gap": 4.0, "kept": True},
                {"text": " on the moon.", "gap": -1.0, "kept": False},
            ],
            "tokens": [
                {"text": "A", "gap": None},
                {"text": " red", "gap": 4.0},
                {"text": " moon", "gap": -1.0},
            ],
        },
        {"text": "A cat.", "kept": False, "clauses": [{"text": "A cat.", "gap": -0.5, "kept": False}]},
    ]
    row = {
        "image": "gone.png",
        "rated": ["A red dog."],
        "rated_scores": scores,
        "chair": {"s": {"count": 1, "of": 4}},
    }
    lines = [row | {"final_caption": text, "flags": {}, "error": None} for text in ("A red dog.", "A cat.")]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"chair.s": {"mean": 0.25, "low": 0.1, "high": 0.4, "rows": 2}}
    (folder / "summary.json").write_text(
        json.dumps({"status": "finished", "metrics": metrics, "rows": {"done": 2, "failed": 0}})
    )


async def test_contrast_scores_and_metrics_are_shown(browser: Browser, tmp_path: Path):
    contrast(tmp_path / "made")
    async with browser(write_report(tmp_path / "made")) as page:
        first = page.locator("article").first
        words = first.locator(".verdict .scored")
        assert await words.all_inner_texts() == ["red", "moon"]
        assert [await each.get_attribute("title") for each in await words.all()] == ["gap 4.00", "gap -1.00"]
        text = await first.inner_text()
        assert "dropped: largest gap -0.50 does not exceed 0" in text
        assert "chair.s\n0.25" in text
        assert "No image: " in text
        assert "s\t0.250 (0.100 to 0.400)" in await page.locator("header").inner_text()
        assert "from a dropped text" in await page.locator("article").nth(1).inner_text()
        await page.select_option("#sort", label="chair.s, lowest first")
        await counted(page, "2 rows")


async def test_empty_columns_and_text_from_right_to_left(browser: Browser, tmp_path: Path):
    contrast(tmp_path / "made")
    path = tmp_path / "made" / "captions.jsonl"
    row = json.loads(path.read_text().splitlines()[0]) | {
        "image": "صورة.png",
        "rated_scores": [{"text": "قطة على العشب.", "p_yes": 0.9, "kept": True}],
        "refined_scores": [],
        "final_caption": "",
    }
    path.write_text(json.dumps(row | {"refined": []}) + "\n")
    async with browser(write_report(tmp_path / "made")) as page:
        await counted(page, "1 row")
        article = page.locator("article")
        item = article.locator("li")
        assert await item.evaluate("each => getComputedStyle(each).direction") == "rtl"
        sentence, note = [
            await item.locator(each).evaluate("each => each.getBoundingClientRect().x")
            for each in (".scored", "small")
        ]
        assert note < sentence, "the probability follows its sentence"
        text = await article.inner_text()
        assert "refined\n\n(empty)" in text
        assert "final caption\n\n(empty)" in text


async def test_the_calibration_of_a_check_is_drawn(browser: Browser, tmp_path: Path):
    contrast(tmp_path / "made")
    answers = [{"text": HOSTILE, "p_yes": each / 20, "label": each > 8, "right": True} for each in range(20)]
    path = tmp_path / "made" / "captions.jsonl"
    rows = [row | {"check_answers": answers} for row in captions(path.parent)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with browser(write_report(tmp_path / "made")) as page:
        region = page.get_by_role("region", name="Calibration of check")
        assert await region.locator("canvas").evaluate("each => each.width") > 600
        assert await region.locator("tr").count() == 10
        assert "0.425\t0.500 (0.500 to 0.500)\t4 statements" in await region.locator("table").inner_text()


async def test_a_comparison_shows_table_plot_and_differences(hostile: Path, browser: Browser, tmp_path: Path):
    lines = captions(hostile)
    for line in lines:
        if line["final_caption"]:
            line["final_caption"] = line["final_caption"].replace("It is brown.", "It was really brown <i>.")
    other, failed = tmp_path / "other", tmp_path / "failed"
    for folder in (other, failed):
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"k=<img src=x>{folder.name}"]))
    (other / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (other / "journal.jsonl").write_bytes((hostile / "journal.jsonl").read_bytes())
    summary = json.loads((hostile / "summary.json").read_bytes())
    (other / "summary.json").write_text(json.dumps(summary | {"rows": {"done": 0, "failed": 60}}))
    (failed / ".hydra" / "error.txt").write_text("threshold: <script>window.hacked=3</script>")
    Comparison(read_runs([hostile, other, failed])).save(tmp_path)
    async with browser(tmp_path / "comparison.html") as page:
        assert await page.locator("table.runs tbody tr").count() == 3
        cells = page.locator("table.runs tbody tr").nth(1).locator("td")
        assert await cells.nth(1).inner_text() == "0\n60 failed"
        last = await page.locator("table.runs tbody tr").last.inner_text()
        assert "failed" in last
        assert "threshold: <script>window.hacked=3</script>" in last
        await page.locator("#chart canvas").wait_for()
        await page.select_option("#quality", label="words")
        await page.select_option("#cost", label="seconds")
        assert await page.locator("#chart canvas").count() == 1
        assert await page.locator("#chart canvas").evaluate("each => each.width") > 600
        await counted(page, "60 rows")
        first = page.locator("article").first
        assert await first.get_by_role("insertion").all_inner_texts() == ["was really ", "<i>"]
        assert await first.get_by_role("deletion").all_inner_texts() == ["is "]
        assert "this job lacks the row" in await first.inner_text()
        for words, found in (("it was REALLY brown", "58 of 60 rows"), ("is was really", "0 of 60 rows")):
            await page.fill("#search", words)
            await counted(page, found)
        await page.fill("#search", "")
        await page.select_option("#tag", label="captions differ (58)")
        await counted(page, "58 of 60 rows")
        await page.locator("h1").click()
        await page.keyboard.press("j")
        await until(page, "document.activeElement.tagName", "ARTICLE")
        link = page.locator("table.runs a")
        assert await link.get_attribute("href") == "run/report.html"
        await link.click()
        await page.wait_for_selector("article")
        assert page.url == (hostile / "report.html").as_uri()
