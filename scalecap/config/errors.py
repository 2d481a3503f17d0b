"""Explains errors of Hydra and OmegaConf: the key at fault, and similar valid ones."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from scalecap.config.settings import CONF, schema
from scalecap.text.suggestions import did_you_mean

HEADERS = {"also": "pipeline", "evaluate": "_global_", "prompts": "prompts"}
"""Groups whose files need a `# @package` header, and the package that it names."""


def explain(error: BaseException) -> str:
    """The error of a config in one or a few lines: the key at fault, and similar valid ones."""
    if isinstance(error, MissingConfigException) and (file := error.missing_cfg_file):
        group, _, option = file.rpartition("/")
        # Hydra does not list the options when the choice is a list.
        options = error.options or [path.stem for path in sorted((CONF / group).glob("*.yaml"))]
        return f"{group}={option}: no such option{did_you_mean(option, options)}"
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        where = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}"
        return f"{where}: {error.problem}; quote text with special characters, or put it on lines after `|-`"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return str(error)
    text = "\n".join(str(each) for each in _causes(error))
    if found := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"${{{found[1]}}}: no such key{_similar_keys(found[1])}"
    key = ""
    for pattern in (r"Could not override '([^'@]+)", r"full_key: (\S+)"):
        if not key and (found := re.search(pattern, text)):
            key = found[1]
    if found := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return f"{key if key.endswith('.' + found[1]) else found[1]}=… must be given"
    if isinstance(error, OverrideParseException):
        override = str(error.override)
        if not re.search(r"[=~]", override):
            return f"{override}: not an override; write key=value without spaces around the ="
        key, _, value = override.partition("=")
        if re.search(r"^[\[{]|[\"'\\]", value):  # a list or mapping, or quoted already
            key, value = "key", "value"
        reason = text.splitlines()[0].removeprefix(f"LexerNoViableAltException: {override}")
        return (
            ": ".join(filter(None, [override, reason])) + f"; quote special characters: '{key}=\"{value}\"'"
        )
    if key in set(_groups(CONF)) and "No match in the defaults list" in text:
        return f"{key}: not available here; it belongs to {_owners(key)}"
    if key and re.search(r"not in|No match in the defaults list", text):
        group, *below = key.split(".")
        hint = "" if key == group in HEADERS else _similar_keys(key)
        in_steps = not below or below[0] in ("pipeline", "steps")
        if group in HEADERS and (in_steps or "did you mean" not in hint):
            hint += f"; a file of {group}/ begins with `# @package {HEADERS[group]}`"
        return f"{key}: no such {'group' if '/' in key else 'key'}{hint}"
    if key and "is not a ListConfig" in text:
        return f"{key}: expected a list, as in {key}=[a,b]"
    if key and "is not Optional" in text:
        return f"{key}: must not be null"
    if key and (found := re.search(r"^Value '.*", text, re.MULTILINE)):
        return f"{key}: {found[0]}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "_type=" not in line]
    return "\n  ".join(dict.fromkeys(lines))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that …"""
    seen = set[int]()
    while error is not None and id(error) not in seen:  # under a debugger, OmegaConf's are their own cause
        yield error
        seen.add(id(error))
        error = error.__cause__


def _similar_keys(key: str) -> str:
    """Similar valid keys, or groups when it has a slash; those beside it when none is similar."""
    groups = list(_groups(CONF))
    valid = groups if "/" in key else [*_keys(schema()), *(group.replace("/", ".") for group in groups)]
    if get_close_matches(key, valid):
        return did_you_mean(key, set(valid))
    above = key.rpartition(".")[0]
    beside = {name for name in valid if name.rpartition(".")[0] == above}
    return did_you_mean(key, beside or {name for name in valid if "." not in name})


def _owners(group: str) -> str:
    """The options that the group belongs to, as overrides: `pipeline=scalecap` of `pipeline/check`."""
    above, _, name = group.rpartition("/")
    files = [
        file for file in sorted((CONF / above).glob("*.yaml")) if f"- {name}:" in file.read_text("utf-8")
    ]
    return " or ".join(f"{above}={file.stem}" for file in files)


def _keys(node: DictConfig, above: str = "") -> Iterator[str]:
    """Dotted names of all keys."""
    for name in map(str, node):
        yield above + name
        if isinstance(node._get_node(name), DictConfig):
            yield from _keys(node[name], f"{above}{name}.")


def _groups(folder: Path) -> Iterator[str]:
    """Names of all config groups."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and "hydra" not in path.relative_to(folder).parts:
            yield path.relative_to(folder).as_posix()
