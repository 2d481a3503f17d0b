"""Runs on a scripted engine with hostile texts, and a real browser to view their pages."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import says
from runs import Compose, Rows, roles

from scalecap.runner import run

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)

Browser = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def hostile(compose: Compose, rows: Rows, tmp_path: Path) -> Path:
    """The folder of a run over 60 rows, two of which failed."""
    settings = compose("data=jsonl", rows(60, broken=(3, 50)), "report=true", "cache=off")
    run(settings, engines=roles(says), command="python -m scalecap <b>")
    return tmp_path / "run"


@pytest.fixture
def browser() -> Browser:
    """Opens a page from disk in headless Chromium; it may raise no error and fetch nothing."""
    api = pytest.importorskip("playwright.async_api", reason='needs pip install "scalecap[dev]"')
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")

    @asynccontextmanager
    async def opened(
        path: Path, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> AsyncIterator[Any]:
        wrong: list[str] = []
        async with api.async_playwright() as playwright:
            window = await playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
            page = await window.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.set_default_timeout(120_000)  # reached by no page that works
            page.on("console", lambda each: wrong.append(f"{each.type}: {each.text}"))
            page.on("pageerror", lambda each: wrong.append(str(each)))
            page.on("request", lambda each: each.url.startswith(("file:", "data:")) or wrong.append(each.url))
            await page.goto(path.as_uri())
            await page.wait_for_selector("article")
            yield page
            assert await page.evaluate("window.hacked") is None
            await window.close()
        assert not wrong

    return opened
