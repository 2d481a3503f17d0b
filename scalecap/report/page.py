"""Shared by both pages: the template environment, packed blocks of rows and thumbnails.

A page is one self-contained file. Rows and images are embedded as compressed base64 blocks, which the page's
script unpacks when they scroll into view. No text of a run is ever part of the HTML or script.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup, escape

from scalecap.data.groups import batches
from scalecap.messages import plural

BLOCK_ROWS = 50
"""Rows per block; `BLOCK` of `templates/page.js`."""


class Block(NamedTuple):
    """Packed data of the page, unpacked by its script on demand."""

    id: str
    content: str
    """Base64 of gzipped JSON."""


@cache
def templates() -> jinja2.Environment:
    """The Jinja environment of the pages; output is autoescaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scalecap.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset
    environment.filters |= {
        "number": format_number,
        "whole": _format_count,
        "plural": plural,
        "brief": shorten,
        "breakable": _breakable,
    }
    return environment


def asset(name: str) -> Markup:
    """The content of a script or style sheet of this package, not escaped."""
    return Markup(files("scalecap.report").joinpath(name).read_text(encoding="utf-8"))


def format_number(value: float) -> str:
    """A rounded number: an integer from 1000 on, three decimals below 10, else one."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{3 if abs(value) < 10 else 1}f}"


def shorten(value: str) -> str:
    """A config value; long decimals are rounded to four digits."""
    try:
        return f"{float(value):.4g}" if "." in value and len(value) > 6 else value
    except ValueError:
        return value


def _format_count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _breakable(name: str) -> Markup:
    """A dotted name with line break opportunities."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))


def block(name: str, value: Any) -> Block:
    """Packs a JSON value."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    packed = gzip.compress(text.encode("utf-8", "replace"), mtime=0)
    return Block(name, base64.b64encode(packed).decode())


def image_blocks(images: Sequence[bytes | str]) -> Iterator[Block]:
    """Packs thumbnails (WebP), or the reason why there is none, in blocks parallel to those of the rows."""
    for number, batch in enumerate(batches(images, BLOCK_ROWS)):
        cells = [
            {"none": each} if isinstance(each, str) else {"webp": base64.b64encode(each).decode()}
            for each in batch
        ]
        yield block(f"images-{number}", cells)
