"""Composes the configuration of a run as the command line does, and gives its settings their types."""

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from scalecap.config.errors import explain
from scalecap.config.settings import CONF, Settings, SettingsError, schema
from scalecap.engines.settings import EngineSettings
from scalecap.text.suggestions import did_you_mean

_LOCK = threading.Lock()
"""Hydra's state is global to the process."""


def compose(
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    *,
    config_dirs: Sequence[str | os.PathLike[str]] = (),
) -> tuple[DictConfig, list[str]]:
    """The configuration of a run, and the equivalent overrides of the command line.

    Args:
        overrides: as on the command line: `"pipeline/check=both"`, `"sampling.temperature=0.2"`.
        values: the same as Python values. A string or list chooses options of a group; a mapping sets the
            keys below: `{"pipeline": "scalecap", "sampling": {"top_p": 1.0}}`.
        config_dirs: folders of the user's own YAML files, as `--config-dir`.

    Raises:
        SettingsError: a key or value is invalid; the message names it and similar ones.
    """
    own = [Path(each).expanduser().resolve() for each in config_dirs]
    if missing := next((folder for folder in own if not folder.is_dir()), None):
        raise SettingsError(f"the folder of your YAML files does not exist: {missing}")
    groups: list[str] = []
    leaves: list[tuple[str, Any]] = []
    for key, value in (values or {}).items():
        is_group = any((folder / key).is_dir() for folder in (CONF, *own))
        if is_group and not isinstance(value, Mapping):
            groups.append(f"{key}={_option(value)}")
        else:
            leaves += _leaves(key, value)
    words = with_model_group([*overrides, *groups], [key for key, _ in leaves])
    searched = f"hydra.searchpath={quoted([f'file://{folder}' for folder in own])}"
    try:
        with _LOCK, hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("config", [searched, *words])
        for key, value in leaves:
            OmegaConf.update(config, key, value)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise SettingsError(explain(error)) from error
    return config, [*words, *(f"{key}={quoted(value)}" for key, value in leaves)]


def from_config(config: DictConfig) -> Settings:
    """The typed settings of a composed config, with interpolations resolved.

    Raises:
        SettingsError: a key, value or interpolation is invalid.
    """
    try:
        # `+key=value` adds keys without validation, so the config is merged into the schema once more.
        typed = OmegaConf.merge(schema(), OmegaConf.create(OmegaConf.to_container(config)))
        settings = OmegaConf.to_object(typed)
        assert isinstance(settings, Settings)
        for role, model in vars(settings.model).items():
            model.engine = _typed_engine(f"model.{role}.engine", model.engine)
    except OmegaConfBaseException as error:
        raise SettingsError(explain(error)) from error
    if problems := settings.problems():
        raise SettingsError("\n  ".join(problems))
    settings.pipeline.steps = settings.labels.restrict_steps(settings.pipeline.steps)
    return settings


def _typed_engine(key: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Validates a role's own engine settings, at `key` of the config. SettingsError, or OmegaConf's own."""
    known = [each.name for each in fields(EngineSettings)]
    for name in given:
        if name not in known:
            raise SettingsError(f"{key}.{name}: no such key{did_you_mean(name, known)}")
    # At its place in the config, so that errors name the full key.
    node = OmegaConf.create({})
    OmegaConf.update(node, key, OmegaConf.structured(EngineSettings))
    OmegaConf.update(node, key, dict(given))
    typed: Any = OmegaConf.to_container(OmegaConf.select(node, key))
    return {name: typed[name] for name in given}


def with_model_group(overrides: Sequence[str], keys: Sequence[str] = ()) -> list[str]:
    """The overrides, with `model=own` where they name a model and choose no option of `model`.

    The default option is the embedded model, which brings its own prompts and precision.

    Args:
        keys: keys that are set besides, without their values.
    """
    given = {override.partition("=")[0] for override in overrides} | set(keys)
    named = "model.vlm.name" in given and "model" not in given
    return [*overrides, *(["model=own"] if named else [])]


def _option(value: Any) -> str:
    """An option of a group: `cache=False` is `off`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return quoted(value)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values; a path becomes a string."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, os.fspath(value) if isinstance(value, os.PathLike) else value


def quoted(value: Any) -> str:
    """The value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quoted, value))}]"
    text = str(value)
    if not isinstance(value, str) or re.fullmatch(r"[\w./@%+-]+", text):
        return text
    return '"' + re.sub(r'(\\*)(")', r"\1\1\\\2", text) + '"'
