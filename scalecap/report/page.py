"""What both pages share: templates, packed rows, pictures.

A page is one file that needs nothing else: rows and pictures lie in it as blocks of base64, which the
page's script unpacks when they are looked at. No text of a run is ever part of its HTML or script.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import jinja2
from markupsafe import Markup, escape

BLOCK = 50
"""Rows that are unpacked together."""

T = TypeVar("T")


class Block(NamedTuple):
    """A piece of the page that is unpacked when it is needed."""

    id: str
    content: str
    """Base64 of gzipped JSON."""


@cache
def templates() -> jinja2.Environment:
    """The pages' templates; all that they print is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("scalecap.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["asset"] = asset
    made.filters |= {"number": shown, "whole": _whole, "brief": brief, "breakable": _breakable}
    return made


def asset(name: str) -> Markup:
    """A script or style of this package, as it is."""
    return Markup(files("scalecap.report").joinpath(name).read_text(encoding="utf-8"))


def shown(value: float) -> str:
    """A number for reading: whole from 1000 on, three digits after the point below 10."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{3 if abs(value) < 10 else 1}f}"


def brief(value: str) -> str:
    """A value without the digits that nobody reads."""
    try:
        return f"{float(value):.4g}" if "." in value and len(value) > 6 else value
    except ValueError:
        return value


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _breakable(name: str) -> Markup:
    """A dotted name that a narrow column may break at its dots."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))


def block(name: str, value: Any) -> Block:
    """Packs a value that JSON can hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    packed = gzip.compress(text.encode("utf-8", "replace"), mtime=0)
    return Block(name, base64.b64encode(packed).decode())


def batches(values: Iterable[T], size: int = BLOCK) -> Iterator[list[T]]:
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def picture_blocks(pictures: Sequence[bytes | str]) -> Iterator[Block]:
    """Thumbnails (WebP), or why there is none, in blocks beside those of their rows."""
    for number, batch in enumerate(batches(pictures)):
        cells = [
            {"none": each} if isinstance(each, str) else {"webp": base64.b64encode(each).decode()}
            for each in batch
        ]
        yield block(f"pictures-{number}", cells)
