"""What a model's free reply holds: lines, or a JSON value. Nothing is guessed."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

_MARK = re.compile(r"^\s*(?:[-•]\s*|\*\s+|\d+[.)]\s+)")
"""Of a list's item: "- ", "1. ", not the number in "3 dogs"."""


def lines(reply: str) -> list[str]:
    """The lines of a reply that hold something, stripped, without the marks of a list ("- ", "1. ")."""
    found = (_MARK.sub("", line, count=1).strip() for line in reply.splitlines())
    return [line for line in found if line]


_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


class Unparsed(ValueError):
    """The reply is not the JSON that was asked for; the message says why."""


def json_value(reply: str, schema: Mapping[str, Any] | None = None) -> Any:
    """The JSON value that a reply is, or that its only block of code is.

    Raises:
        Unparsed: it is none, or does not follow the JSON schema.
    """
    blocks = _FENCE.findall(reply)
    try:
        value = json.loads(blocks[0] if len(blocks) == 1 else reply, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Unparsed(str(error)) from error
    if schema is not None:
        from jsonschema import Draft202012Validator

        for problem in Draft202012Validator(schema).iter_errors(value):
            raise Unparsed(f"{problem.json_path}: {problem.message:.200}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
