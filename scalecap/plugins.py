"""Engines, sources and sinks of other packages, found by `package/name` and imported only when used.

A package declares each as an entry point, and `package` is its top-level module:

    [project.entry-points."scalecap.sinks"]
    csv = "acme.captions:open_csv"          # write.format=[acme/csv]
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

Kind = Literal["engines", "sources", "sinks"]


class PluginError(Exception):
    """The package's module can't be imported; the message says why."""


def names(kind: Kind) -> list[str]:
    """`package/name` of all that the installed packages declare, sorted; nothing is imported."""
    return sorted(_declared(kind))


def load(kind: Kind, name: str) -> Any:
    """What a package declares under `package/name`. PluginError when it isn't there or can't be imported."""
    entry = _declared(kind).get(name)
    if entry is None:
        raise PluginError(f"no installed package declares {name!r} among its scalecap.{kind}")
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(f"{name!r} can't be loaded: {type(error).__name__}: {error}") from error


def _declared(kind: Kind) -> dict[str, EntryPoint]:
    found = entry_points(group=f"scalecap.{kind}")
    return {f"{each.module.partition('.')[0]}/{each.name}": each for each in found}
