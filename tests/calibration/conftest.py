"""A run on a scripted engine whose check keeps dogs, which are there, and drops most cats, which are not."""

from pathlib import Path

import pytest
from labelled import STEPS
from runs import Compose, Rows, roles

from scalecap.engines.base import Choose, Request
from scalecap.engines.scripted import Scripted
from scalecap.runner import run


def says(request: Request) -> str | float:
    image = request.prompt.image
    red = image.pixels.getpixel((0, 0))[0] if image else 0
    if isinstance(request, Choose):
        return 0.05 + 0.06 * (red % 10) if "cat" in request.prompt.text else 0.6 + 0.019 * (red % 20)
    if request.prompt.text == "Caption.":
        return "There is a dog. There is a cat."
    return "It is a brown dog."


@pytest.fixture
def engines() -> dict[str, Scripted]:
    return roles(says)


@pytest.fixture
def made(compose: Compose, rows: Rows, engines: dict[str, Scripted], tmp_path: Path) -> Path:
    """The folder of a run over 120 rows."""
    settings = compose("data=jsonl", rows(120), STEPS, "cache=off", "pipeline=none", "report=false")
    run(settings, engines=engines, command="python -m scalecap data=jsonl")
    return tmp_path / "run"
