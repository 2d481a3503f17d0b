"""The real configs, shrunk; an engine that plays a model that sees one dog and invents a cat."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from scalecap.engines.base import Choose, Request
from scalecap.engines.scripted import Scripted
from scalecap.settings import CONF, Settings, from_config


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's cache, the working folder or another test's Hydra."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    GlobalHydra.instance().clear()
    logging.getLogger("scalecap").handlers.clear()  # Hydra's, on a screen that ends with the test


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., Settings]:
    """Composes the settings as the command line does."""

    def compose(*overrides: str, config_dir: Path | None = None) -> Settings:
        searched = [f"hydra.searchpath=[file://{config_dir}]"] if config_dir else []
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("config", [f"output={tmp_path / 'run'}", *searched, *overrides])
        return from_config(config)

    return compose


def _answer(request: Request) -> str | float:
    """What the scripted model says, by the words of the prompt."""
    text = request.prompt.text
    if isinstance(request, Choose):
        return 0.1 if "cat" in text else 0.9
    if "strictly yes or no" in text or "Answer yes or no" in text:
        return "No, not so." if "cat" in text else "Yes."
    if request.prompt.image is None:
        return (
            "A dog, brown."
            if "Join" in text or "comprehensive" in text
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
    engine = Scripted(_answer)
    return {"vlm": engine, "llm": engine}


@pytest.fixture
def answer() -> Callable[[Request], str | float]:
    """What the scripted model says, for scripts that differ from it now and then."""
    return _answer
