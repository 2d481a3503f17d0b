"""A model's folder: where it is, what it is, and what to say when it can't be had.

Shared by the engines that load weights themselves.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalecap.engines.base import EngineDead
from scalecap.engines.digests import digest
from scalecap.engines.settings import ModelSettings

_NEEDED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Files that determine replies: configuration, weights, tokenizer, chat template."""


_LOOK = 10.0
"""Seconds that the hub has to say whether it has a model."""


class ModelError(EngineDead):
    """The model can't be loaded; the message says the mend."""

    kind = "model"


class HubUnreachableError(ModelError):
    """The model is not here, and the hub can't be reached to ask for it."""


@dataclass(frozen=True)
class Weights:
    """A model on this machine."""

    folder: Path
    content: str
    """`name@commit` of a hub model, `sha256:…` of a local folder's files, whatever its name."""
    config: dict[str, Any]
    """config.json, every `rope_scaling` mended."""
    mended: dict[str, Any]
    """The top-level entries of `config` that differ from the file: overrides for a loader of its own."""

    def chat_template(self) -> str | None:
        """The template kept beside the tokenizer; None when the tokenizer's own holds."""
        if (file := self.folder / "chat_template.jinja").is_file():
            return file.read_text("utf-8")
        if (file := self.folder / "chat_template.json").is_file():
            template: str | None = json.loads(file.read_text("utf-8")).get("chat_template")
            return template
        return None


def find(model: ModelSettings) -> Weights:
    """Resolve a local folder or a hub name, downloading what is not here yet.

    Raises:
        ModelError: no such folder or model, the hub can't be reached, or it is not a model.
    """
    folder, content = _folder(model)
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no model: it has no config.json") from None
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors: the weights are missing or in another format")
    whole = fix_rope_scaling(config)
    mended = {key: value for key, value in whole.items() if value != config[key]}
    return Weights(folder, content or f"sha256:{_digest(folder)}", whole, mended)


def preflight(model: ModelSettings) -> None:
    """Sees that a model can be had, without loading it: here, in the hub's local cache, or on the hub.

    Raises:
        ModelError: no such folder, no model in it, no such model on the hub; HubAwayError when it can't say.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if folder := _local(model):
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no model: it has no config.json")
        return
    with _hub(model):
        if not isinstance(try_to_load_from_cache(model.name, "config.json", revision=model.revision), str):
            HfApi().model_info(model.name, revision=model.revision, timeout=_LOOK)


def size_of(model: ModelSettings) -> int:
    """Bytes of a model's weights. Raises ModelError as `find` does."""
    folder, _ = _folder(model)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _folder(model: ModelSettings) -> tuple[Path, str | None]:
    """Where the model is, and `name@commit` when it is the hub's."""
    if local := _local(model):
        return local.resolve(), None
    folder = _download(model)
    return folder, f"{model.name}@{folder.name}"


def _local(model: ModelSettings) -> Path | None:
    """Its folder here; None for a hub name."""
    local = Path(model.name).expanduser()
    if local.is_dir():
        return local
    if model.name.startswith(("/", ".", "~")) or model.name.count("/") > 1:
        raise ModelError(
            f"no folder {model.name} (from {Path.cwd()}): give a model's folder, or its name on the hub"
        )
    return None


def fix_rope_scaling(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config in which every rope setting that has only a `type` has a `rope_type`."""

    def fixed(value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            return value
        value = {name: fixed(inner, name) for name, inner in value.items()}
        if key in ("rope_scaling", "rope_parameters") and "type" in value and "rope_type" not in value:
            # Multimodal rope is the default rope with `mrope_section` set.
            value["rope_type"] = "default" if value["type"] == "mrope" else value["type"]
            del value["type"]
        return value

    mended: dict[str, Any] = fixed(config, "")
    return mended


@contextmanager
def loading(model: ModelSettings) -> Iterator[None]:
    """Turn the failures that users meet while a model loads into one message with the mend.

    Raises:
        ModelError: in place of libraries that don't fit, out of memory and unreadable files.
        ModuleNotFoundError: as it is, for the caller knows what to install.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if "nvjitlink" in f"{error} {error.__cause__}".lower():
            raise ModelError(
                "CUDA's libraries don't fit together, because LD_LIBRARY_PATH names others than torch's own "
                f"({os.environ.get('LD_LIBRARY_PATH', '')}): run `unset LD_LIBRARY_PATH` and try again"
            ) from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise
        if out_of_memory(error):
            raise ModelError(
                f"{model.name} does not fit into the GPU's memory: take a smaller or a quantised one, "
                "16 bits (model.vlm.dtype=bfloat16), a smaller model.vlm.max_context, or end what else runs"
            ) from error
        raise ModelError(f"{model.name} can't be loaded: {type(error).__name__}: {error}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the device's memory running out, as torch or a child process of vLLM says it."""
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


def _download(model: ModelSettings) -> Path:
    """The hub's snapshot of a model; its folder is named by the commit."""
    from huggingface_hub import snapshot_download

    patterns = [*_NEEDED, "*.py"] if model.trust_remote_code else [*_NEEDED]
    with _hub(model):
        return Path(snapshot_download(model.name, revision=model.revision, allow_patterns=patterns))


@contextmanager
def _hub(model: ModelSettings) -> Iterator[None]:
    """Turns what the hub's client raises into one message with the fix."""
    from huggingface_hub import errors

    name, asked = model.name, f" (revision {model.revision})" if model.revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} asks for consent: accept its terms on the hub, then `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"no folder {name} here (from {Path.cwd()}) and no such model on the hub{asked}; "
            "a private one needs `hf auth login`"
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise HubUnreachableError(
            f"{name}{asked} is neither a folder here (from {Path.cwd()}) nor in the hub's local cache, and "
            "the hub can't be reached: check the network, or fetch it elsewhere with "
            f"`hf download {name} --local-dir DIR` and give DIR as its name ({error})"
        ) from error


def _digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files that determine replies; the folder's name has no part."""
    files = sorted({file for pattern in (*_NEEDED, "*.py") for file in folder.glob(pattern)})

    with ThreadPoolExecutor() as pool:
        lines = [f"{file.name} {sha}\n" for file, sha in zip(files, pool.map(digest, files), strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
