"""What a model's free reply holds: lines, or a JSON value. Nothing is guessed."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from scalecap.text.segmentation import finished, sentences

_MARK = re.compile(r"^(?:[-•+]\s*|\*\s+|#+\s+|\d+[.)]\s+)")
"""Of a list's item or a heading: "- ", "1. ", "## ", not the number in "3 dogs"."""
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_RULE = re.compile(r"[-*_]{3,}|```\w*")
"""A line that only draws one, or that begins or ends a block of code."""


def lines(reply: str) -> list[str]:
    """The lines of a reply, each once, without Markdown: list marks, headings, bold type, rules and fences.

    What announces the lines, or more, is left out, as by `body`. A reply that is only "None" has none.
    """
    told = [line.strip() for line in reply.splitlines()]
    told = body("\n".join(line for line in told if line and not _RULE.fullmatch(line))).splitlines()
    found = (_BOLD.sub(r"\2", _MARK.sub("", line, count=1)).strip() for line in told)
    distinct = list(dict.fromkeys(line for line in found if line))
    return [] if len(distinct) == 1 and distinct[0].casefold() in ("none", "none.") else distinct


def body(reply: str) -> str:
    """A reply without a first line that announces it ("Sure! Here is …:") or a last that announces more."""
    told = reply.strip().splitlines()
    first = 1 if len(told) > 1 and _announces(told[0]) else 0
    last = len(told) - (len(told) > first + 1 and _announces(told[-1]))
    return reply if (first, last) == (0, len(told)) else "\n".join(told[first:last]).strip()


def _announces(line: str) -> bool:
    return line.rstrip().endswith((":", "：")) and not _MARK.match(line.lstrip())


def complete_sentences(reply: str) -> str:
    """A reply that was cut, up to its last whole sentence that says something new.

    A model that repeats itself is cut somewhere in its repetitions; their first round stays. A reply without
    a whole sentence is left as it is.
    """
    told = [reply[start:end] for start, end in sentences(reply)]
    while told and not (finished(told[-1]) and told[-1].strip() not in map(str.strip, told[:-1])):
        del told[-1]
    return "".join(told).strip() or reply


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
