"""Opens pictures: whatever a cell holds becomes upright, opaque, 8-bit RGB with a hash.

Three rules of its own, stated once:

- Transparent parts become white.
- Grey levels deeper than 8 bits are scaled by their full scale, never clipped: 16-bit values by 65535;
  32-bit integers above that by their own maximum; floats by 1, 255 or 65535, the first that
  holds all values. Negative values are black.
- A very thin picture is padded with white below or on the right until it is 100 times as long as
  wide (processors refuse 200), after one longer than 20,000 pixels is scaled down to that. A picture
  under 28 pixels on a side is enlarged by a whole factor, so that it fills at least one vision token.
"""

import hashlib
import io
import math
import os
import re
import string
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from scalecap.engines.base import Image
from scalecap.rows import RowError

MAX_ASPECT_RATIO = 100
MAX_THIN_SIDE = 20_000
MIN_SIDE = 28
URL_TIMEOUT_SECONDS = 30.0
MAX_URL_BYTES = 64 * 2**20

# Pillow warns of a bomb and goes on; here it is refused by its size, and the row tells.
warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}


def open_image(cell: Any, *, folders: Sequence[Path] = (), allow_urls: bool = False) -> Image:
    """The picture in a cell: a path, bytes, `{"bytes", "path"}` or a Pillow image.

    A relative path is looked for in `folders`, in order. A URL is fetched only with `allow_urls`.
    Raises RowError, whose message names the file.
    """
    if isinstance(cell, Mapping) and cell.keys() & {"bytes", "path"}:
        content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, bytes | bytearray):
            return _decode(io.BytesIO(content), repr(path) if path else "the picture's bytes")
        cell = path
    if isinstance(cell, str | os.PathLike):
        name = os.fspath(cell)
        if name and is_url(name):
            return _decode(io.BytesIO(_fetch(name, allow_urls)), repr(_truncated(name)))
        if name:
            path = _resolve(name, folders)
            try:
                with path.open("rb") as file:
                    return _decode(file, repr(str(path)))
            except OSError as error:
                raise RowError("unreadable_image", f"can't read {str(path)!r}: {error.strerror}") from error
    if isinstance(cell, bytes | bytearray):
        return _decode(io.BytesIO(cell), "the picture's bytes")
    if isinstance(cell, Pillow.Image):
        return _to_image(cell, "the picture")
    held = "nothing" if cell is None or cell == "" else f"{type(cell).__name__}: {_truncated(repr(cell))}"
    raise RowError("bad_cell", f"the picture's cell holds {held}; it must hold a path or a picture's bytes")


def read_image(
    cell: Any,
    *,
    folders: Sequence[Path] = (),
    allow_urls: bool = False,
    within: Sequence[Path] | None = None,
) -> bytes:
    """The file that `open_image` opens, as it is, be it a picture or not. Raises RowError.

    A path that leads out of all folders in `within` is refused; None allows every path.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if isinstance(cell, bytes | bytearray):
        return bytes(cell)
    if isinstance(cell, Pillow.Image):
        file = io.BytesIO()
        cell.save(file, "PNG")
        return file.getvalue()
    name = os.fspath(cell) if isinstance(cell, str | os.PathLike) else ""
    if not name:
        raise RowError("bad_cell", "the picture's cell holds neither a path nor a picture's bytes")
    if is_url(name):
        return _fetch(name, allow_urls)
    path = _check_within(_resolve(name, folders), within)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowError("unreadable_image", f"can't read {str(path)!r}: {error.strerror}") from error


def find_image(cell: Any, *, folders: Sequence[Path] = (), within: Sequence[Path] | None = None) -> Path:
    """Where the file is that a cell names, refused as `read_image` does. Raises RowError."""
    if isinstance(cell, Mapping) and cell.get("bytes") is None:
        cell = cell.get("path")
    name = os.fspath(cell) if isinstance(cell, str | os.PathLike) else ""
    if not name or is_url(name):
        raise RowError("no_file", "the picture is no file on this disk")
    return _check_within(_resolve(name, folders), within)


def _check_within(path: Path, within: Sequence[Path] | None) -> Path:
    """The path, if it leads out of no folder in `within`; None allows every path."""
    if within is not None and not any(_is_inside(path, folder) for folder in within):
        raise RowError(
            "outside_data",
            f"{str(path)!r} is outside of the data's folder; data.allow_outside=true lets it be used",
        )
    return path


def image_stamp(cell: Any, *, folders: Sequence[Path] = ()) -> str:
    """What tells whether a cell's picture is still the same, without decoding it.

    The size and time of a file, a digest of bytes and of a `data:` URL; empty for all else, and for a file
    that is not there.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str) and cell.startswith("data:"):
        cell = cell.encode("utf-8", "surrogatepass")
    if isinstance(cell, bytes | bytearray):
        return hashlib.blake2b(cell, digest_size=16).hexdigest()
    if isinstance(cell, str | os.PathLike) and os.fspath(cell) and not is_url(os.fspath(cell)):
        try:
            found = _resolve(os.fspath(cell), folders).stat()
        except (RowError, OSError):
            return ""
        return f"{found.st_size} bytes of {found.st_mtime_ns}"
    return ""


class Fingerprint(NamedTuple):
    """What tells a picture from another one in its place, the surest first; what is not known is empty."""

    hash: str
    """Of the pixels; see `scalecap.engines.base.Image`."""
    stamp: str
    """Of the file; see `stamp`."""
    name: str
    """What the data calls it."""

    def matches(self, other: "Fingerprint") -> bool:
        """Whether both are of one picture, by the surest that is known of both; False where nothing is."""
        known = ((one, two) for one, two in zip(self, other, strict=True) if one and two)
        return next((one == two for one, two in known), False)


def image_name(cell: Any) -> str:
    """What the data calls the picture in a cell; empty where it has no name."""
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    return name if isinstance(name, str) else ""


def is_url(name: str) -> bool:
    """Whether the text is an address (`http://…`, `data:…`) and not a file's path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", name) is not None


def _truncated(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"


def _resolve(name: str, folders: Sequence[Path]) -> Path:
    """The file of that name; a name that begins with `/` is looked for nowhere else."""
    places = [folder / name for folder in folders] or [Path(name)]
    try:
        for path in places:
            if path.is_file():
                return path
        for path in places:
            if path.exists():
                what = "is a folder" if path.is_dir() else "is not a file"
                raise RowError("unreadable_image", f"{str(path)!r} {what}")
    except (OSError, ValueError) as error:
        raise RowError("missing_file", f"{_truncated(name)!r} can't be looked up: {error}") from error
    looked = " or ".join(dict.fromkeys(repr(str(path)) for path in places))
    raise RowError("missing_file", f"no such file: {looked}")


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether the path stands in the folder as it is written, or where links lead."""
    written = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
    return written or path.resolve().is_relative_to(folder.resolve())


def _fetch(url: str, allow_urls: bool) -> bytes:
    if not allow_urls and not url.lower().startswith("data:"):
        raise RowError(
            "url_refused", f"{_truncated(url)!r} is a URL; data.allow_urls=true lets it be fetched"
        )
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise RowError("url_refused", f"{_truncated(url)!r}: only http, https and data URLs are fetched")
    request = urllib.request.Request(
        urllib.parse.quote(url, safe=string.punctuation), headers={"User-Agent": "scalecap"}
    )
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as reply:
            content: bytes = reply.read(MAX_URL_BYTES + 1)
    except Exception as error:  # urllib raises OSError, HTTPException and ValueError for what servers send
        raise RowError("url_failed", f"{_truncated(url)!r} could not be fetched: {error}") from error
    if len(content) > MAX_URL_BYTES:
        raise RowError("too_large", f"{_truncated(url)!r} sends more than {MAX_URL_BYTES // 2**20} MiB")
    return content


def _decode(file: BinaryIO, name: str) -> Image:
    if not file.read(1):
        raise RowError("empty_file", f"{name} is empty (0 bytes)")
    file.seek(0)
    try:
        # EPS is the one format for which Pillow starts another program.
        Pillow.init()
        with Pillow.open(file, formats=[each for each in Pillow.ID if each != "EPS"]) as picture:
            return _to_image(picture, name)
    except RowError:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise RowError("too_large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise RowError("unreadable_image", f"{name} is not a picture in a format known here") from error
    except Exception as error:  # decoders raise nearly anything on broken input
        raise _decode_error(name, error) from error


def _to_image(picture: Pillow.Image, name: str) -> Image:
    """The first frame as `Image`. Raises RowError, and what decoders raise."""
    width, height = picture.size
    most = Pillow.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise RowError(
            "too_large", f"{name} has {width}×{height} pixels; at most {most} are decoded: scale it down"
        )
    if not width * height:
        raise RowError("unreadable_image", f"{name} has {width}×{height} pixels")
    picture.load()
    return Image.of(_fit_size(_orient(_to_rgb(picture), picture)))


def _decode_error(name: str, error: Exception) -> RowError:
    cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
    if cut:
        return RowError("truncated_image", f"{name} is cut off: {error}")
    return RowError("unreadable_image", f"{name} can't be decoded: {error or type(error).__name__}")


def _to_rgb(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode.startswith(("I", "F")):
        return _to_8_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        white = Pillow.new("RGBA", picture.size, "white")
        return Pillow.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _to_8_bits(picture: Pillow.Image) -> Pillow.Image:
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32), posinf=0.0, neginf=0.0).clip(min=0)
    top = float(values.max())
    scales = (1.0, 255.0, 65535.0) if picture.mode == "F" else (65535.0,)
    full = next((scale for scale in scales if top <= scale), top)
    return Pillow.fromarray(np.rint(values * (255 / full)).astype(np.uint8))


def _orient(pixels: Pillow.Image, source: Pillow.Image) -> Pillow.Image:
    """Turned as the EXIF of `source` says; a broken EXIF says nothing."""
    try:
        turn = _UPRIGHT.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata of any kind of brokenness must not cost the picture
        turn = None
    return pixels if turn is None else pixels.transpose(turn)


def _fit_size(pixels: Pillow.Image) -> Pillow.Image:
    """Neither thinner nor smaller than models take: see the rules at the top."""
    long, short = max(pixels.size), min(pixels.size)
    if long > MAX_ASPECT_RATIO * short:
        if long > MAX_THIN_SIDE:
            ratio = MAX_THIN_SIDE / long
            width, height = (max(1, round(side * ratio)) for side in pixels.size)
            pixels = pixels.resize((width, height), Pillow.Resampling.BOX)
        least = math.ceil(max(pixels.size) / MAX_ASPECT_RATIO)
        canvas = Pillow.new("RGB", (max(pixels.width, least), max(pixels.height, least)), "white")
        canvas.paste(pixels)
        pixels = canvas
    factor = math.ceil(MIN_SIDE / min(pixels.size))
    if factor > 1:
        pixels = pixels.resize((pixels.width * factor, pixels.height * factor), Pillow.Resampling.NEAREST)
    return pixels
