"""What stage tests share: a picture, and a way to ask a script."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image as Pillow

from scalecap.asking import Asked, Counts, StepAsk
from scalecap.engines.base import Image, Request, Sampling
from scalecap.engines.scripted import Scripted


class Asking:
    """An `Ask` that answers from a script and keeps what was asked and marked."""

    def __init__(self, script: Callable[[Request], Any]) -> None:
        self.requests: list[Request] = []
        self.flags: list[str] = []

        def answer(request: Request) -> Any:
            self.requests.append(request)
            return script(request)

        engine = Scripted(answer)
        asked = Asked({"vlm": engine, "llm": engine}, None, Sampling(), 0, Counts())
        self.ask = StepAsk(asked, "step", self.flags.append)

    @property
    def texts(self) -> list[str]:
        return [request.prompt.text for request in self.requests]


@pytest.fixture
def asking() -> type[Asking]:
    return Asking


@pytest.fixture
def image() -> Image:
    return Image("abc", Pillow.new("RGB", (2, 2)))
