"""What tests of whole runs share: the scripted engine in its roles, and the rows that a run wrote."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalecap.config.settings import Settings
from scalecap.engines.base import Request
from scalecap.engines.scripted import Scripted

Compose = Callable[..., Settings]
"""The fixture `compose`: settings from overrides."""
Rows = Callable[..., str]
"""The fixture `rows`."""
Command = Callable[..., int]
"""The fixtures `command` and `typed`."""
Engines = dict[str, Scripted]
Answer = Callable[[Request], str | float]


def captions(folder: Path | str = "run") -> list[dict[str, Any]]:
    """The rows that a run wrote; every test has a working folder of its own."""
    with (Path(folder) / "captions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def roles(script: Any, **more: Any) -> Engines:
    """A scripted engine in every role."""
    return dict.fromkeys(("vlm", "llm", "judge"), Scripted(script, **more))


async def interrupt(caplog: pytest.LogCaptureFixture, number: signal.Signals = signal.SIGINT) -> None:
    """Sends a signal to this process, and waits until the run has got it."""
    os.kill(os.getpid(), number)
    while "Interrupted: waiting for rows in flight." not in caplog.text:
        await asyncio.sleep(0.001)


def first_words(request: Request) -> str:
    return request.prompt.text.splitlines()[0]
