"""The real configs, shrunk; an engine that plays a model that sees one dog and invents a cat."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import hypothesis
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image as Pillow
from runs import Command, Compose, roles

import scalecap.engines
from scalecap.__main__ import main
from scalecap.config.compose import from_config
from scalecap.config.settings import CONF, Settings
from scalecap.engines.base import Choose, Image, Request, Sampling, Score, Scored, Token
from scalecap.engines.scripted import Scripted
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.stages import registry

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

SHARED_ENGINES = {
    r"engines/test_vllm\.py": "one vLLM",
    r"engines/test_contracts\.py.*\[vllm": "contracts of vLLM",
    r"engines/test_contracts\.py.*\[openai|engines/test_openai\.py.*real_server": "one server",
    r"engines/test_language_model\.py": "one language model",
}
"""Tests that share an engine, which takes half a minute to start, by patterns of their ids."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers get one test at a time, since some take minutes, but all that share an engine."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            groups = (group for pattern, group in SHARED_ENGINES.items() if re.search(pattern, nodeid))
            return next(groups, nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's cache, the working folder or another test's Hydra."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # A process of Ray keeps the token that it found in its first home; its servers would look in this one.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    yield
    GlobalHydra.instance().clear()
    logging.getLogger("scalecap").handlers.clear()  # Hydra's, on a screen that ends with the test
    logging.getLogger("hydra._internal.hydra").disabled = False  # a check's logging config turns it off


@pytest.fixture
def own_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.names()
    monkeypatch.setattr(registry, "_stages", dict(registry._stages))


@pytest.fixture
def compose(tmp_path: Path) -> Compose:
    """Composes the settings as the command line does."""

    def compose(*overrides: str) -> Settings:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("config", [f"output={tmp_path / 'run'}", *overrides])
        return from_config(config)

    return compose


def _answer(request: Request) -> str | float | Scored:
    """The scripted model's reply, by words of the prompt."""
    text = request.prompt.text
    if isinstance(request, Score):
        words = [found.span() for found in re.finditer(r"\s*\S+\s*$|\s*\S+|\s+", request.text)]
        gain = -1.0 if request.prompt.image else 0.0
        return Scored(tuple(Token(a, b, gain if "cat" in request.text[a:b] else -2 - gain) for a, b in words))
    if isinstance(request, Choose):
        return 0.1 if "cat" in text else 0.9
    if "strictly yes or no" in text or "Answer yes or no" in text:
        return "No, not so." if "cat" in text else "Yes."
    if request.prompt.image is None and ("Take apart" in text or "smallest statements" in text):
        return text.rpartition(": ")[2]
    if request.prompt.image is None:
        return (
            "A dog, brown."
            if any(word in text for word in ("Join", "comprehensive", "Collect", "Gather", "Extract"))
            else "Describe more details about the dog."
        )
    if "position" in text:
        return "The dog is at the left."
    if "more details" in text:
        return "The dog is brown."
    return "There is a dog. There is a cat."


@pytest.fixture
def engines() -> dict[str, Scripted]:
    """One scripted engine for all roles."""
    return roles(_answer)


@pytest.fixture
def answer() -> Callable[[Request], str | float | Scored]:
    """The scripted model's replies, for scripts that differ from them now and then."""
    return _answer


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, engines: dict[str, Scripted]) -> list[Any]:
    """The models that were opened, each as a scripted engine."""
    models: list[Any] = []

    async def open_engine(model: Any, engine: Any, beside: Any) -> Scripted:
        models.append(model)
        return engines["vlm"]

    monkeypatch.setattr(scalecap.engines, "open_engine", open_engine)
    return models


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `python -m scalecap <words>` in this process; the exit code."""

    def typed(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["scalecap", *map(str, words)])
        try:
            return main()
        except SystemExit as end:
            return int(end.code or 0)

    return typed


@pytest.fixture
def typed(command: Command, opened: list[Any]) -> Command:
    """The same on the scripted engine."""
    return command


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., str]:
    """Makes a JSONL of `count` images; those in `broken` are text named .png."""

    def make(count: int, broken: tuple[int, ...] = ()) -> str:
        lines = []
        for number in range(count):
            path = tmp_path / f"{number}.png"
            if number in broken:
                path.write_text("no image")
            else:
                Pillow.new("RGB", (30, 30), (number, 0, 0)).save(path)
            lines.append(json.dumps({"id": number, "image": path.name}))
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        return f"data.path={tmp_path}/rows.jsonl"

    return make


class RecordingClient:
    """Holds a `ModelClient` that answers from a script; records its requests and flags."""

    def __init__(self, script: Callable[[Request], Any], min_mass: float = 0.0) -> None:
        self.requests: list[Request] = []
        self.flags: list[str] = []

        def answer(request: Request) -> Any:
            self.requests.append(request)
            return script(request)

        dispatcher = Dispatcher(roles(answer), None, Sampling(), 0, RunUsage(), min_mass)
        self.client = dispatcher.client("step", self.flags.append)

    @property
    def texts(self) -> list[str]:
        return [request.prompt.text for request in self.requests]


@pytest.fixture
def recording_client() -> type[RecordingClient]:
    """Makes a client from a script."""
    return RecordingClient


@pytest.fixture
def image() -> Image:
    return Image("abc", Pillow.new("RGB", (2, 2)))
