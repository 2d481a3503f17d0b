"""Weights on disk or on the hub: where they are, what identifies them, and errors when they can't be loaded.

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

_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Files that determine replies: configuration, weights, tokenizer, chat template."""
_HUB_TIMEOUT = 10.0
"""Seconds that the hub has to say whether it has a model."""


class ModelError(EngineDead):
    """The model can't be loaded; the message says how to fix it."""

    kind = "model"


class HubUnreachableError(ModelError):
    """The model is not on this machine, and the hub can't be reached."""


@dataclass(frozen=True)
class Weights:
    """A model on this machine."""

    folder: Path
    content: str
    """`name@commit` of a hub model; `sha256:…` over the files of a local folder, whatever its name."""
    config: dict[str, Any]
    """config.json with fixed rope settings."""
    config_overrides: dict[str, Any]
    """The top-level entries of `config` that differ from the file."""

    def chat_template(self) -> str | None:
        """The template in a file next to the tokenizer; None to use the tokenizer's own."""
        if (file := self.folder / "chat_template.jinja").is_file():
            return file.read_text("utf-8")
        if (file := self.folder / "chat_template.json").is_file():
            template: str | None = json.loads(file.read_text("utf-8")).get("chat_template")
            return template
        return None


def find_weights(model: ModelSettings) -> Weights:
    """Resolves a local folder or a hub name, downloading files that are missing.

    Raises:
        ModelError: there is no such folder or model, the hub can't be reached, or files are missing.
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
        raise ModelError(f"{folder} has no *.safetensors files: the weights are missing or in another format")
    fixed = fix_rope_scaling(config)
    overrides = {key: value for key, value in fixed.items() if value != config[key]}
    return Weights(folder, content or f"sha256:{_digest(folder)}", fixed, overrides)


def preflight(model: ModelSettings) -> None:
    """Checks that a model exists, without loading it: in a folder, in the hub's local cache or on the hub.

    Raises:
        ModelError: there is no such folder or no model in it, or no such model on the hub.
        HubUnreachableError: it could not be checked.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if folder := _local_folder(model):
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no model: it has no config.json")
        return
    with _hub_errors(model):
        if not isinstance(try_to_load_from_cache(model.name, "config.json", revision=model.revision), str):
            HfApi().model_info(model.name, revision=model.revision, timeout=_HUB_TIMEOUT)


def weights_size(model: ModelSettings) -> int:
    """Size of a model's weights in bytes. Raises ModelError as `find_weights` does."""
    folder, _ = _folder(model)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _folder(model: ModelSettings) -> tuple[Path, str | None]:
    """The model's folder, and `name@commit` if it is from the hub."""
    if local := _local_folder(model):
        return local.resolve(), None
    from huggingface_hub import snapshot_download

    patterns = [*_FILES, "*.py"] if model.trust_remote_code else [*_FILES]
    with _hub_errors(model):
        folder = Path(snapshot_download(model.name, revision=model.revision, allow_patterns=patterns))
    return folder, f"{model.name}@{folder.name}"


def _local_folder(model: ModelSettings) -> Path | None:
    """The folder that the name stands for; None for a hub name."""
    local = Path(model.name).expanduser()
    if local.is_dir():
        return local
    if model.name.startswith(("/", ".", "~")) or model.name.count("/") > 1:
        raise ModelError(
            f"no folder {model.name} (from {Path.cwd()}): give a model's folder, or its name on the hub"
        )
    return None


def fix_rope_scaling(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config in which rope settings with the old key `type` have a `rope_type` instead."""

    def fix(value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            return value
        value = {name: fix(inner, name) for name, inner in value.items()}
        if key in ("rope_scaling", "rope_parameters") and "type" in value and "rope_type" not in value:
            # Multimodal rope is the default rope with `mrope_section` set.
            value["rope_type"] = "default" if value["type"] == "mrope" else value["type"]
            del value["type"]
        return value

    fixed: dict[str, Any] = fix(config, "")
    return fixed


@contextmanager
def load_errors(model: ModelSettings) -> Iterator[None]:
    """Turns errors while a model loads into one message that says how to fix them.

    Raises:
        ModelError: for incompatible libraries, out of memory, unreadable files and anything else.
        ModuleNotFoundError: unchanged, as the caller knows what to install.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if "nvjitlink" in f"{error} {error.__cause__}".lower():
            raise ModelError(
                "CUDA libraries are incompatible, because LD_LIBRARY_PATH points to others than torch's own "
                f"({os.environ.get('LD_LIBRARY_PATH', '')}): run `unset LD_LIBRARY_PATH` and try again"
            ) from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise
        if out_of_memory(error):
            raise ModelError(
                f"{model.name} does not fit into the GPU's memory: use a smaller or quantised model, "
                "model.vlm.dtype=bfloat16 or a smaller model.vlm.max_context, or stop other GPU programs"
            ) from error
        raise ModelError(f"{model.name} can't be loaded: {type(error).__name__}: {error}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory, by an error of torch or of a child process of vLLM."""
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


@contextmanager
def _hub_errors(model: ModelSettings) -> Iterator[None]:
    """Turns errors of the hub's client into ModelError with a message that says how to fix them."""
    from huggingface_hub import errors

    name, revision = model.name, f" (revision {model.revision})" if model.revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(f"{name} is gated: accept its terms on the hub, then run `hf auth login`") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"no folder {name} here (from {Path.cwd()}) and no such model on the hub{revision}; "
            "a private one needs `hf auth login`"
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise HubUnreachableError(
            f"{name}{revision} is neither a folder here (from {Path.cwd()}) nor in the hub's local cache, "
            "and the hub can't be reached: check the network, or run "
            f"`hf download {name} --local-dir DIR` on another machine and give DIR as its name ({error})"
        ) from error


def _digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files that determine replies, whatever the folder's name."""
    files = sorted({file for pattern in (*_FILES, "*.py") for file in folder.glob(pattern)})
    with ThreadPoolExecutor() as pool:
        lines = [f"{file.name} {sha}\n" for file, sha in zip(files, pool.map(digest, files), strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
