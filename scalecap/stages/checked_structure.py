"""Leave out of a structured caption what its check refused."""

from collections.abc import Mapping
from typing import Any

from scalecap.stages import stage
from scalecap.stages.leaves import leaves
from scalecap.stages.scores import Score

Path = tuple[str | int, ...]


@stage(side=["refused"])
def checked_structure(
    value: Any, about: list[dict[str, Any]], scores: list[Score], *, key: str = "name"
) -> tuple[Any, list[dict[str, Any]]]:
    """A structured caption whose values are {value, p_yes}, without those that a check did not keep.

    `value` is what `leaves` took apart, `about` its side column, and `scores` that of the check of its
    statements. A record in a list goes as a whole where its `key` was not kept: nothing is
    said about an object that is not there. If nothing is left it is null.

    The side column `refused` has a record of each value left out: {path, value, text, p_yes}; `text` is its
    statement, null where it has none.
    """
    checked = {tuple(each["path"]): score for each, score in zip(about, scores, strict=True)}
    kept = {path for path, score in checked.items() if score["kept"]}
    stated = {
        leaf.path for leaf in leaves(value) if leaf.path in kept and _stands(leaf.path, value, kept, key)
    }
    refused = []
    for leaf in leaves(value):
        if leaf.path not in stated:
            score = checked.get(leaf.path)
            text, p = (score["text"], score.get("p_yes")) if score else (None, None)
            refused.append(
                {"path": ".".join(map(str, leaf.path)), "value": leaf.value, "text": text, "p_yes": p}
            )
    p_yes = {path: checked[path].get("p_yes") for path in stated}
    return _pruned(value, (), p_yes), refused


def _stands(path: Path, value: Any, kept: set[Path], key: str) -> bool:
    """Whether each record in a list on the way to a value has its key kept, if it has one."""
    for at, step in enumerate(path):
        value = value[step]
        own = (*path[: at + 1], key)
        if isinstance(step, int) and isinstance(value, Mapping) and key in value and own not in kept:
            return False
    return True


def _pruned(value: Any, path: Path, p_yes: Mapping[Path, float | None]) -> Any:
    """What is left of the value at a path; None if nothing is."""
    if isinstance(value, Mapping):
        found = {key: _pruned(each, (*path, key), p_yes) for key, each in value.items()}
        return {key: each for key, each in found.items() if each is not None} or None
    if isinstance(value, list):
        items = [_pruned(each, (*path, place), p_yes) for place, each in enumerate(value)]
        return [each for each in items if each is not None] or None
    return {"value": value, "p_yes": p_yes[path]} if path in p_yes else None
