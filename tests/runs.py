"""What tests of whole runs share: the scripted engine for both roles, and the rows that a run wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scalecap.config.settings import Settings
from scalecap.engines.base import Request
from scalecap.engines.scripted import Scripted

Compose = Callable[..., Settings]
Engines = dict[str, Scripted]
Answer = Callable[[Request], str | float]


def captions(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "captions.jsonl").read_text().splitlines()]


def both(engine: Scripted) -> Engines:
    return {"vlm": engine, "llm": engine}


def first_words(request: Request) -> str:
    return request.prompt.text.splitlines()[0]
