"""How long labelling takes, by a model of a person: no person was measured.

    python tests/benchmarks/labelling.py RUN --to labels.jsonl

opens the report of a run over data=scenes in Chromium and labels statements with the keys `y` and `n`, by the
truth. Before each key it waits as long as a person is thought to take: the image is looked at for 1.5 s (a
guess of ours), the statement is read at 238 words a minute (Brysbaert 2019, silent reading), deciding takes
1.35 s and the key 0.28 s (the keystroke-level model, Card, Moran and Newell 1980). The waits are real, and
the page's own time, from a key to the next statement and image on the screen, is reported separately.
"""

import argparse
import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from scalecap.metrics.scenes import scenes

LOOK = 1.5
WORDS_A_MINUTE = 238
DECIDE = 1.35
KEY = 0.28
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
SHOWN = """before => {
  const image = document.querySelector("#label-image img");
  return image?.naturalWidth && document.getElementById("label-count").innerText !== before;
}"""


def seconds(text: str) -> float:
    """What a person takes for a statement."""
    return LOOK + 60 * len(text.split()) / WORDS_A_MINUTE + DECIDE + KEY


async def label(page: Any, truths: dict[str, dict[str, Any]], count: int) -> tuple[float, float]:
    """Labels `count` statements; the seconds of the person and those of the page."""
    person = own = 0.0
    drawn = await page.evaluate("block('draw').then((drawn) => drawn.steps[0].statements)")
    for _, row_id, text in drawn[:count]:
        counts = scenes({"it": text}, truths[row_id])["it"]
        person += (wait := seconds(text))
        await asyncio.sleep(wait)
        before = await page.inner_text("#label-count")
        begun = time.perf_counter()
        await page.keyboard.press("y" if counts["true"] and not counts["wrong"] else "n")
        await page.wait_for_function(SHOWN, arg=before)
        own += time.perf_counter() - begun
    return person, own


async def drive(run: Path, to: Path, count: int) -> None:
    lines = (run / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    truths = {row["row_id"]: row["truth"] for row in map(json.loads, lines)}
    async with async_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        window = await playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = await window.new_page(viewport={"width": 1280, "height": 900})
        await page.goto((run / "report.html").resolve().as_uri())
        begun = time.perf_counter()
        await page.get_by_role("button", name="Label statements").click()
        await page.wait_for_function(SHOWN, arg="")
        opened = time.perf_counter() - begun
        person, own = await label(page, truths, count)
        whole = time.perf_counter() - begun
        print(await page.inner_text("#label-count"))
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Download labels.jsonl").click()
        await (await waiting.value).save_as(to)
        await window.close()
    print(
        f"{count} statements in {whole / 60:.1f} minutes: {person:.0f} s of the person,"
        f" {own + opened:.1f} s of the page"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run over data=scenes with a report")
    parser.add_argument("--to", type=Path, default=Path("labels.jsonl"), help="where the labels go")
    parser.add_argument("--count", type=int, default=50, help="statements")
    arguments = parser.parse_args()
    asyncio.run(drive(arguments.run, arguments.to, arguments.count))


if __name__ == "__main__":
    main()
