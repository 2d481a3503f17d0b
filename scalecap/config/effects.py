"""What a setting affects, from the metadata of its field in `settings.py`."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from scalecap.config.settings import Settings

MAX_SHOWN = 5
"""Differences that a message lists."""


def affects(key: str) -> str:
    """What a key such as `engine.timeout` affects: "rows", "steps", "cost" or "nothing"."""
    kind: Any = Settings
    for name in key.split("."):
        found = [each for each in fields(kind) if each.name == name] if is_dataclass(kind) else []
        if not found:
            break
        if "affects" in found[0].metadata:
            return str(found[0].metadata["affects"])
        kind = found[0].metadata.get("keys_of", found[0].type)
    return "rows"


def determining(config: Mapping[str, Any], kind: Any = Settings, *, whole: bool = True) -> dict[str, Any]:
    """The part of a run's config that determines its rows.

    Args:
        config: the config of a run, as its journal has it.
        kind: the dataclass of the config.
        whole: fill in the defaults of missing keys, as of a journal from before an upgrade.
    """
    known = {each.name: each for each in fields(kind)}
    found = {name: value for name, value in config.items() if name not in known}
    for name, each in known.items():
        if "affects" in each.metadata or not (whole or name in config):
            continue
        default: Any = each.default if each.default_factory is MISSING else each.default_factory()
        value = config.get(name, asdict(default) if is_dataclass(each.type) else default)
        if isinstance(value, Mapping):
            if is_dataclass(each.type):
                value = determining(value, each.type)
            elif keys_of := each.metadata.get("keys_of"):
                value = determining(value, keys_of, whole=False)
            harmless = each.metadata.get("harmless", ())
            value = {key: inner for key, inner in value.items() if key not in harmless}
        found[name] = value
    return found


def config_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first differences of two configs in what determines rows; empty if there are none."""
    return differences(determining(before), determining(now))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first differences of two nested mappings, by dotted key, as text; empty if there are none."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    differ = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    shown = "; ".join(f"{key}: was {old.get(key)}, is {new.get(key)}" for key in differ[:MAX_SHOWN])
    return shown + (f"; and {len(differ) - MAX_SHOWN} more" if len(differ) > MAX_SHOWN else "")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping, by dotted name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
