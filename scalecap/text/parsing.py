"""Parsing of free-text replies into lines, sentences or JSON. Nothing is guessed."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from scalecap.text.segmentation import is_complete, sentences

_MARK = re.compile(
    r"^(?:[-+](?!\d)\s*|[•‣◦▪●–—](?!\d)\s*|\*\s+|#+\s+|\(?(?:\d+|(?<!\()[a-z](?=\)))[.)]\s+"
    r"|\d+(?:、|[.)．）](?=[A-Z\u3040-\u30ff\u3400-\u9fff])))"
)
"""Marker of a list item or heading: "- ", "1. ", "## ", "1、", not a number ("3 dogs", "-5 °C", "3.5米")."""
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_RULE = re.compile(r"[-*_]{3,}|```\w*")
"""A horizontal rule, or the first or last line of a code block."""


def lines(reply: str) -> list[str]:
    """The lines of a reply, each once, without Markdown (list markers, headings, bold, rules, fences).

    Lines that announce others are left out, as by `body`, and so is "None".
    """
    stripped = [line.strip() for line in reply.splitlines()]
    content = body("\n".join(line for line in stripped if line and not _RULE.fullmatch(line))).splitlines()
    # The marker may be bold: "**1. Cat**".
    plain = (_BOLD.sub(r"\2", _MARK.sub("", line)).strip() for line in content)
    found = (_MARK.sub("", line) for line in plain)
    return list(dict.fromkeys(line for line in found if line.casefold() not in ("", "none", "none.")))


def body(reply: str) -> str:
    """A reply without a first line that announces it ("Sure! Here is …:") or a last that announces more.

    Horizontal rules and fences around it are left out, too.
    """
    lines = reply.strip().splitlines()
    kept = list(lines)
    for place in (0, -1):
        if len(kept) > 1 and _announces(kept[place]):
            del kept[place]
        while len(kept) > 1 and (not kept[place].strip() or _RULE.fullmatch(kept[place].strip())):
            del kept[place]
    return reply if kept == lines else "\n".join(kept).strip()


def _announces(line: str) -> bool:
    """Whether the line ends with a colon ("**Caption:**") and is no item of a list."""
    plain = line.strip().lstrip("# ")
    return plain.rstrip("*_").endswith((":", "：")) and not _MARK.match(plain)


def complete_sentences(reply: str) -> str:
    """A truncated reply up to its last complete sentence or line that is not a repetition.

    Of a model that repeats itself the first round stays. A reply without a complete one is unchanged.
    """
    kept = [reply[start:end] for start, end in sentences(reply)]
    if kept and not is_complete(kept[-1]):
        del kept[-1]
    while kept and kept[-1].strip() in map(str.strip, kept[:-1]):
        del kept[-1]
    return "".join(kept).strip() or reply


_BLOCK = re.compile(r"```(?:json\b)?(.*)", re.DOTALL | re.IGNORECASE)


class Unparsed(ValueError):
    """The reply is not the requested JSON; the message says why."""


def json_value(reply: str, schema: Mapping[str, Any] | None = None) -> Any:
    """The JSON value that a reply is, or that its only block of code is.

    Raises:
        Unparsed: the reply is not JSON, or does not follow the schema.
    """
    if (block := _BLOCK.search(reply)) and not reply.lstrip().startswith(("{", "[", '"')):
        reply = block[1].rpartition("```")[0] or block[1]  # the end may be missing
    try:
        value = json.loads(reply, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Unparsed(str(error)) from error
    if schema is not None:
        from jsonschema import Draft202012Validator

        for problem in Draft202012Validator(schema).iter_errors(value):
            raise Unparsed(f"{problem.json_path}: {problem.message:.200}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
