"""`engine=auto`, and engines whose library is missing."""

import pytest

from scalecap import engines as opening
from scalecap.engines.base import EngineError
from scalecap.engines.settings import EngineSettings, ModelSettings


@pytest.mark.parametrize(
    ("installed", "gpus", "base_url", "engine", "why"),
    [
        (True, 1, None, "vllm", "a GPU and vLLM"),
        (True, 0, None, "transformers", "no GPU"),
        (False, 1, None, "transformers", "not installed"),
        (True, 1, "http://localhost/v1", "openai", "base_url"),
    ],
)
def test_auto_takes_what_the_machine_has(monkeypatch, installed, gpus, base_url, engine, why):
    torch = pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    monkeypatch.setattr(opening, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    chosen, reason = opening.choose_engine(EngineSettings(base_url=base_url))
    assert chosen == engine
    assert why in reason


async def test_a_missing_library_names_the_pip_command(monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name="vllm")

    monkeypatch.setattr(opening.importlib, "import_module", absent)
    with pytest.raises(EngineError, match=r'needs the module vllm: pip install "scalecap\[vllm\]"'):
        await opening.open_engine(ModelSettings("x"), EngineSettings("vllm"))
