"""Values of the YAML as the types of a stage's settings."""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from scalecap.engines.base import Sampling
from scalecap.stages import ROLES, Role
from scalecap.text.suggestions import did_you_mean
from scalecap.text.templates import Expression, Template


def fit(value: Any, annotation: Any, sampling: Sampling) -> Any:
    """The YAML's value as the setting's type; ValueError when it is none."""
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        rest = [part for part in parts if part is not type(None)]
        if len(rest) == 1:
            return fit(value, rest[0], sampling)
        if type(value) in rest:
            return value
        raise ValueError(f"{value!r} is none of {', '.join(getattr(p, '__name__', str(p)) for p in rest)}")
    if annotation == Role or typing.get_origin(annotation) is Literal:
        choices = ROLES if annotation == Role else parts
        if value not in choices:
            raise ValueError(f"{value!r} is none of them{did_you_mean(str(value), choices)}")
        return value
    if typing.get_origin(annotation) is list:
        if not isinstance(value, list):
            raise ValueError(f"{value!r} is no list")
        return [fit(each, parts[0], sampling) for each in value]
    if typing.get_origin(annotation) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a mapping, got {value!r}")
        return value
    if annotation is Template:
        if isinstance(value, Mapping):
            raise ValueError(f"{value!r} is no text; a file of prompts/ begins with `# @package prompts`")
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is no text")
        return Template(value)
    if annotation is Expression:
        if not isinstance(value, str):
            raise ValueError(f"expected an expression, got {value!r}")
        return Expression(value)
    if annotation is Sampling:
        return _sampling(value, sampling)
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in (bool, int, float, str) and type(value) is not annotation:
        raise ValueError(f"{value!r} is no {annotation.__name__}")
    return value


def _sampling(value: Any, base: Sampling) -> Sampling:
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is no mapping: write `sampling: {{temperature: 0}}`")
    known = {field.name: field for field in fields(Sampling)}
    fitted: dict[str, Any] = {}
    for name, part in value.items():
        if name not in known:
            raise ValueError(f"no such value {name!r}{did_you_mean(name, list(known))}")
        try:
            fitted[name] = fit(part, known[name].type, base)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    sampling = replace(base, **fitted)
    if problems := sampling.problems():
        raise ValueError("; ".join(problems))
    return sampling
