"""Opens engines by name, and keeps them as long as the process lives.

An engine's file, and the heavy libraries it needs, are imported when it is opened, not before. One of another
package is `package/name`, an entry point in group `scalecap.engines`; `README.md` says what it must hold to.
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
_MODULES = {"openai": "aiohttp"}
"""By engine, the library without which it is nothing, where that has another name."""

T = TypeVar("T")


def choose_engine(engine: "EngineSettings") -> tuple[str, str]:
    """The engine that these settings ask for; of `auto`, the one that suits this machine, and why."""
    if engine.name != "auto":
        return engine.name, "it is named"
    if engine.base_url:
        return "openai", "engine.base_url is given"
    if find_spec("vllm") is None:
        return "transformers", "vLLM is not installed"
    try:
        import torch
    except ImportError:
        return "transformers", "torch cannot be imported"
    if torch.cuda.device_count() == 0:  # counts without starting CUDA in this process
        return "transformers", "there is no GPU"
    return "vllm", "a GPU and vLLM are here"


async def open_engine(
    model: "ModelSettings", engine: "EngineSettings", beside: "Sequence[ModelSettings]" = ()
) -> Engine:
    """The engine that `engine.name` asks for, loaded with the model.

    Args:
        beside: the other models of the run, which are to find room on the same devices.

    Raises EngineError with one message and its fix when it can't be had.
    """
    name, why = choose_engine(engine)
    outside = "/" in name
    if engine.name == "auto":
        log.info("engine: %s, because %s", name, why)
    if engine.args and name != "vllm" and not outside:
        raise EngineError(f"engine.args.{next(iter(engine.args))} is for vLLM, and the engine is {name}")
    if engine.extra_body and name != "openai" and not outside:
        raise EngineError(
            f"engine.extra_body.{next(iter(engine.extra_body))} is for openai, and the engine is {name}"
        )
    if name != "openai":
        model, *beside = (
            replace(each, name=str(embedded_model())) if each.name == EMBEDDED else each
            for each in (model, *beside)
        )
    more = [beside] if name == "vllm" or outside else []  # the others take no more than they need
    try:
        opened = await _opener(name)(model, engine, *more)
    except ModuleNotFoundError as error:
        raise EngineError(_needs(name, error.name)) from error
    if outside and not opened.identity.startswith(f"{name} "):
        await opened.close()
        raise EngineError(
            f"engine={name}: expected an identity that begins with its name, got {opened.identity!r}: the"
            " cache could take another engine's replies for its own; scalecap.engines.identity makes one"
        )
    return opened


def _opener(name: str) -> Callable[..., Awaitable[Engine]]:
    """The function that opens the engine of that name."""
    opener: Callable[..., Awaitable[Engine]]
    if "/" in name:
        try:
            opener = plugins.load("engines", name)
        except plugins.PluginError as error:
            raise EngineError(f"engine={name}: {error}") from error
    else:
        opener = getattr(importlib.import_module(f"{__name__}.{name}"), f"open_{name}")
    return opener


def embedded_model() -> Path:
    """Folder of the embedded model. EngineError when the package came without it."""
    folder = Path(__file__).resolve().parent.parent / "scenes" / "model"
    if not (folder / "config.json").is_file():
        raise EngineError(f"the embedded model is not in {folder}; train it: python -m scalecap.scenes.train")
    return folder


def preflight(roles: "Sequence[RoleSettings]") -> list[str]:
    """Sees that the models can be had, without loading one: what could not be seen, for reading.

    A server is asked which models it has, the hub whether it has one that is not in its local cache.

    Raises:
        EngineError: a library, a model or the server is not there; the message has the fix.
    """
    unseen: dict[str, None] = {}
    for model, engine in roles:
        name = "openai" if engine.name == "auto" and engine.base_url else engine.name
        if "/" in name:
            _opener(name)
            unseen[f"that {name} can run {model.name}"] = None
            continue
        if name != "auto" and find_spec(module := _MODULES.get(name, name)) is None:
            raise EngineError(_needs(name, module))
        if name == "openai":
            unseen[importlib.import_module(f"{__name__}.openai").preflight(model, engine)] = None
            unseen["that the server answers"] = None
            continue
        if model.name == EMBEDDED:
            embedded_model()
        else:
            weights = importlib.import_module(f"{__name__}.weights")
            try:
                weights.preflight(model)
            except weights.HubUnreachableError:
                unseen[f"whether the hub, which can't be reached, has {model.name}"] = None
        unseen["that the models load and fit memory"] = None
    return [each for each in unseen if each]


def _needs(name: str, module: str | None) -> str:
    extra = f': pip install "scalecap[{EXTRAS[name]}]"' if name in EXTRAS else ""
    return f"engine={name} needs the module {module}{extra}"


class Engines:
    """The engines of this process and the event loop they live on.

    A sweep's jobs share them: an engine stays open until a run needs other models, or the process ends.
    """

    def __init__(self) -> None:
        self.loop = LoopThread()
        self._open: dict[str, Engine] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` to its end on the engines' loop."""
        return self.loop.run(work)

    async def by_role(self, roles: "Mapping[str, RoleSettings]") -> dict[str, Engine]:
        """The engine of each role; equal settings share one.

        Others are closed first, for their memory, unless `engine.keep` says otherwise.
        """
        keys = {role: repr(settings) for role, settings in roles.items()}
        if not any(settings.engine.keep for settings in roles.values()):
            for key in self._open.keys() - keys.values():
                await self._open.pop(key).close()
        apart = {keys[role]: settings for role, settings in roles.items()}
        for key, (model, engine) in apart.items():
            if key not in self._open:
                others = [other for name, other in apart.items() if name != key]
                beside = [other.model for other in others if choose_engine(other.engine)[0] != "openai"]
                self._open[key] = await open_engine(model, engine, beside)
        return {role: self._open[key] for role, key in keys.items()}

    def close(self) -> None:
        """Closes all engines and the loop; a later run opens them anew."""
        try:
            for key in list(self._open):
                self.loop.run(self._open.pop(key).close())
        finally:
            self.loop.close()
