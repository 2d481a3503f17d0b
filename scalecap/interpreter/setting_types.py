"""Values of the YAML converted to the types of a stage's settings."""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal

from scalecap.engines.base import Sampling
from scalecap.stages import ROLES, Role
from scalecap.text.suggestions import did_you_mean
from scalecap.text.templates import Expression, Template

_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_EXPECTED: Mapping[Any, tuple[Any, str]] = {
    list: (list, "a list"),
    Mapping: (Mapping, "a mapping"),
    Sampling: (Mapping, "a mapping such as `{temperature: 0}`"),
    Template: (str, "a string"),
    Expression: (str, "an expression"),
}
"""By annotation, the type of the YAML's value and its name."""


def convert(value: Any, annotation: Any, sampling: Sampling) -> Any:
    """The YAML's value as the type that a setting is annotated with.

    Args:
        sampling: the run's, whose values a `Sampling` keeps unless the YAML names them.

    Raises:
        ValueError: the value has another type, or is not one of the choices.
    """
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        alternatives = [part for part in parts if part is not type(None)]
        if len(alternatives) == 1:
            return convert(value, alternatives[0], sampling)
        if type(value) in alternatives:
            return value
        expected = " or ".join(_TYPE_NAMES.get(part, str(part)) for part in alternatives)
        raise ValueError(f"expected {expected}, got {value!r}")
    if annotation == Role or typing.get_origin(annotation) is Literal:
        choices = ROLES if annotation == Role else parts
        if value not in choices:
            expected = ", ".join(map(repr, choices))
            raise ValueError(f"invalid value {value!r}, expected one of {expected}")
        return value
    kind = typing.get_origin(annotation) or annotation
    expected_type, expected = _EXPECTED.get(kind, (object, ""))
    if not isinstance(value, expected_type):
        misplaced = kind is Template and isinstance(value, Mapping)
        hint = "; a file of prompts/ begins with `# @package prompts`" if misplaced else ""
        raise ValueError(f"expected {expected}, got {value!r}{hint}")
    if kind is list:
        return [convert(each, parts[0], sampling) for each in value]
    if kind in (Template, Expression):
        return kind(value)
    if annotation is Sampling:
        return _sampling(value, sampling)
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in _TYPE_NAMES and type(value) is not annotation:
        raise ValueError(f"expected {_TYPE_NAMES[annotation]}, got {value!r}")
    return value


def _sampling(value: Mapping[str, Any], base: Sampling) -> Sampling:
    known = {field.name: field for field in fields(Sampling)}
    changes: dict[str, Any] = {}
    for name, part in value.items():
        if name not in known:
            raise ValueError(f"unknown key {name!r}{did_you_mean(str(name), list(known))}")
        try:
            changes[name] = convert(part, known[name].type, base)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    sampling = replace(base, **changes)
    if problems := sampling.problems():
        raise ValueError("; ".join(problems))
    return sampling
