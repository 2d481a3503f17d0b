"""Opens engines by name, and keeps them open for later runs of the process.

An engine's module and the heavy libraries that it needs are imported when it is opened, not before. An engine
of another package is `package/name`, an entry point in the group `scalecap.engines`; `README.md` lists its
contracts.
"""

import importlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scalecap import plugins
from scalecap.engines.base import Engine, EngineError
from scalecap.engines.loop import LoopThread
from scalecap.engines.settings import EXTRAS

if TYPE_CHECKING:
    from scalecap.engines.settings import EngineSettings, ModelSettings, RoleSettings

log = logging.getLogger(__name__)

EMBEDDED = "scenes"
"""Name of the model that comes with the package."""

T = TypeVar("T")


def choose_engine(engine: "EngineSettings") -> tuple[str, str]:
    """The engine's name and why it was chosen; `auto` is resolved to what suits this machine."""
    if engine.name != "auto":
        return engine.name, "engine.name is set"
    if engine.base_url:
        return "openai", "engine.base_url is set"
    if find_spec("vllm") is None:
        return "transformers", "vLLM is not installed"
    try:
        import torch
    except ImportError:
        return "transformers", "torch cannot be imported"
    if torch.cuda.device_count() == 0:  # counts without starting CUDA in this process
        return "transformers", "there is no GPU"
    return "vllm", "there is a GPU and vLLM is installed"


async def open_engine(
    model: "ModelSettings", engine: "EngineSettings", colocated: "Sequence[ModelSettings]" = ()
) -> Engine:
    """Opens an engine and loads the model.

    Args:
        colocated: the other models of the run, which must fit on the same devices.

    Raises:
        EngineError: it can't be opened; the message says how to fix it.
    """
    name, why = choose_engine(engine)
    outside = "/" in name
    if engine.name == "auto":
        log.info("engine: %s, because %s", name, why)
    if engine.args and name != "vllm" and not outside:
        raise EngineError(
            f"engine.args.{next(iter(engine.args))} needs engine=vllm, but the engine is {name}"
        )
    if engine.extra_body and name != "openai" and not outside:
        raise EngineError(
            f"engine.extra_body.{next(iter(engine.extra_body))} needs engine=openai, but the engine is {name}"
        )
    if name != "openai":
        model, *colocated = (
            replace(each, name=str(embedded_model())) if each.name == EMBEDDED else each
            for each in (model, *colocated)
        )
    extra = [colocated] if name == "vllm" or outside else []  # the others only use the memory they need
    try:
        opened = await _opener(name)(model, engine, *extra)
    except ModuleNotFoundError as error:
        raise EngineError(_missing_module(name, error.name)) from error
    if outside and not opened.identity.startswith(f"{name} "):
        await opened.close()
        raise EngineError(
            f"engine={name}: expected an identity that begins with its name, got {opened.identity!r}:"
            " otherwise the cache could return replies of another engine; make it with"
            " scalecap.engines.identity.identity"
        )
    return opened


def _opener(name: str) -> Callable[..., Awaitable[Engine]]:
    """The function that opens the engine of this name."""
    try:
        opener: Callable[..., Awaitable[Engine]] = (
            plugins.load("engines", name)
            if "/" in name
            else getattr(importlib.import_module(f"{__name__}.{name}"), f"open_{name}")
        )
    except plugins.PluginError as error:
        raise EngineError(f"engine={name}: {error}") from error
    return opener


def embedded_model() -> Path:
    """Folder of the embedded model. Raises EngineError if it is not in the package."""
    folder = Path(__file__).resolve().parent.parent / "scenes" / "model"
    if not (folder / "config.json").is_file():
        raise EngineError(
            f"the embedded model is not in {folder}: train it with python -m scalecap.scenes.train"
        )
    return folder


def preflight(roles: "Sequence[RoleSettings]") -> list[str]:
    """Checks that models are available, without loading them; returns what could not be checked.

    Servers are asked which models they have, the hub whether it has a model that is not in its local cache.

    Raises:
        EngineError: a library, a model or the server is missing; the message says how to fix it.
    """
    unchecked: dict[str, None] = {}
    for model, engine in roles:
        name = "openai" if engine.name == "auto" and engine.base_url else engine.name
        if "/" in name:
            _opener(name)
            unchecked[f"that {name} can run {model.name}"] = None
            continue
        module = "aiohttp" if name == "openai" else name
        if name != "auto" and find_spec(module) is None:
            raise EngineError(_missing_module(name, module))
        if name == "openai":
            unchecked[importlib.import_module(f"{__name__}.openai").preflight(model, engine)] = None
            unchecked["that the server answers"] = None
            continue
        if model.name == EMBEDDED:
            embedded_model()
        else:
            weights = importlib.import_module(f"{__name__}.weights")
            try:
                weights.preflight(model)
            except weights.HubUnreachableError:
                unchecked[f"whether the hub, which can't be reached, has {model.name}"] = None
        unchecked["that the models load and fit memory"] = None
    return [each for each in unchecked if each]


def _missing_module(name: str, module: str | None) -> str:
    extra = f': pip install "scalecap[{EXTRAS[name]}]"' if name in EXTRAS else ""
    return f"engine={name} needs the module {module}{extra}"


class Engines:
    """The open engines of this process, and their event loop.

    Jobs of a sweep share them: an engine stays open until a run needs other models, or the process ends.
    """

    def __init__(self) -> None:
        self.loop = LoopThread()
        self._open: dict[str, Engine] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the engines' event loop and returns its result."""
        return self.loop.run(work)

    async def by_role(self, roles: "Mapping[str, RoleSettings]") -> dict[str, Engine]:
        """The engine of each role; roles with equal settings share one.

        Engines that no role needs are closed first, to free their memory, unless `engine.keep` is set.
        Raises EngineError if one can't be opened.
        """
        keys = {role: repr(settings) for role, settings in roles.items()}
        if not any(settings.engine.keep for settings in roles.values()):
            for key in self._open.keys() - keys.values():
                await self._open.pop(key).close()
        distinct = {keys[role]: settings for role, settings in roles.items()}
        for key, (model, engine) in distinct.items():
            if key not in self._open:
                others = [other for name, other in distinct.items() if name != key]
                colocated = [other.model for other in others if choose_engine(other.engine)[0] != "openai"]
                self._open[key] = await open_engine(model, engine, colocated)
        return {role: self._open[key] for role, key in keys.items()}

    def close(self) -> None:
        """Closes all engines and the loop; a later run opens new ones."""
        try:
            for key in list(self._open):
                self.loop.run(self._open.pop(key).close())
        finally:
            self.loop.close()
