"""Opens images: any cell (path, bytes, URL, Pillow image) becomes upright, opaque, 8-bit RGB with a hash.

- Transparent pixels become white.
- Grey levels deeper than 8 bits are rescaled, never clipped: 16-bit values by 65535, larger integers by their
  maximum, floats by the first of 1, 255 and 65535 that is at least their maximum. Negative values are black.
- The aspect ratio is at most 100 (processors refuse 200): a thinner image is scaled down to 20,000 pixels
  where it is longer, then padded with white at the bottom or right. An image with a side under 28 pixels is
  enlarged by an integer factor, so that it fills at least one vision token.
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
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from scalecap.engines.base import Image
from scalecap.rows import Row, RowError

MAX_ASPECT_RATIO = 100
MAX_THIN_SIDE = 20_000
MIN_SIDE = 28
URL_TIMEOUT_SECONDS = 30.0
MAX_URL_BYTES = 64 * 2**20

# Pillow only warns of decompression bombs; here their size is an error of the row.
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
    """Opens the image in a cell: a path, URL, bytes, `{"bytes", "path"}` or a Pillow image.

    Args:
        cell: may be a function without arguments that returns it.
        folders: searched in order for a relative path.
        allow_urls: whether `http(s)://` is fetched; otherwise it is an error.

    Raises:
        RowError: the image can't be read; the message names the file.
    """
    if callable(cell):
        cell = cell()
    if isinstance(cell, Mapping) and cell.keys() & {"bytes", "path"}:
        content, path = cell.get("bytes"), cell.get("path")
        if isinstance(content, bytes | bytearray):
            return _decode(io.BytesIO(content), repr(path) if path else "the image's bytes")
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
        return _decode(io.BytesIO(cell), "the image's bytes")
    if isinstance(cell, Pillow.Image):
        return _to_image(cell, "the image")
    empty = cell is None or isinstance(cell, str)
    got = "nothing" if empty else f"{type(cell).__name__}: {_truncated(repr(cell))}"
    raise RowError("bad_cell", f"expected the path or bytes of an image, got {got}")


def read_image(
    cell: Any, *, folders: Sequence[Path] = (), allow_urls: bool = False, within: Sequence[Path] | None = None
) -> bytes:
    """The raw bytes of the file that `open_image` would open, whether it is an image or not.

    Args:
        within: a path must be inside one of these folders; None allows every path.

    Raises:
        RowError: the file can't be read, or is outside of `within`.
    """
    if callable(cell):
        cell = cell()
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
        raise RowError("bad_cell", "expected the path or bytes of an image")
    if is_url(name):
        return _fetch(name, allow_urls)
    path = _check_within(_resolve(name, folders), within)
    try:
        return path.read_bytes()
    except OSError as error:
        raise RowError("unreadable_image", f"can't read {str(path)!r}: {error.strerror}") from error


def find_image(cell: Any, *, folders: Sequence[Path] = (), within: Sequence[Path] | None = None) -> Path:
    """The path of the local file that a cell names; arguments and errors as of `read_image`."""
    if isinstance(cell, Mapping) and cell.get("bytes") is None:
        cell = cell.get("path")
    name = os.fspath(cell) if isinstance(cell, str | os.PathLike) else ""
    if not name or is_url(name):
        raise RowError("no_file", "the image is not a local file")
    return _check_within(_resolve(name, folders), within)


def _check_within(path: Path, within: Sequence[Path] | None) -> Path:
    """The path if it is inside one of `within`; None allows every path."""
    if within is not None and not any(_is_inside(path, folder) for folder in within):
        raise RowError(
            "outside_data",
            f"{str(path)!r} is outside of the data's folder; set data.allow_outside=true to use it",
        )
    return path


def image_stamp(cell: Any, *, folders: Sequence[Path] = ()) -> str:
    """A cheap fingerprint that changes when a cell's image is replaced, without decoding it.

    Size and modification time of a file, a digest of bytes or of a `data:` URL; empty for anything else and
    for a missing file.
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


def image_row(
    index: int,
    columns: Mapping[str, Any],
    cell: Any,
    *,
    id: str = "",
    stamp: str | None = None,
    folders: Sequence[Path] = (),
    allow_urls: bool = False,
    within: Sequence[Path] | None = None,
) -> Row:
    """The row whose image is in a cell; other arguments as of `read_image`. `stamp` None is `image_stamp`."""
    return Row(
        *(index, columns, partial(open_image, cell, folders=folders, allow_urls=allow_urls)),
        stamp=image_stamp(cell, folders=folders) if stamp is None else stamp,
        read_image=partial(read_image, cell, folders=folders, allow_urls=allow_urls, within=within),
        find_image=partial(find_image, cell, folders=folders, within=within),
        id=id,
    )


class Fingerprint(NamedTuple):
    """Identifies an image, by its most reliable known field first; unknown fields are empty."""

    hash: str
    """Hash of the pixels, see `scalecap.engines.base.Image`."""
    stamp: str
    """See `image_stamp`."""
    name: str
    """Name in the data set, see `image_name`."""

    def matches(self, other: "Fingerprint") -> bool:
        """Whether the first field known of both is equal; False if there is none."""
        known = ((one, two) for one, two in zip(self, other, strict=True) if one and two)
        return next((one == two for one, two in known), False)


def image_name(cell: Any) -> str:
    """The path by which a cell names its image; empty if it has none."""
    name = cell.get("path") if isinstance(cell, Mapping) else cell
    return name if isinstance(name, str) else ""


def is_url(name: str) -> bool:
    """Whether the text is a URL (`http://…`, `data:…`) rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", name) is not None


def _truncated(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"


def _resolve(name: str, folders: Sequence[Path]) -> Path:
    """The first existing file of that name in `folders`; an absolute path is taken as it is."""
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
    tried = " or ".join(dict.fromkeys(repr(str(path)) for path in places))
    raise RowError("missing_file", f"no such file: {tried}")


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether the path is inside the folder, before or after links are resolved."""
    written = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
    return written or path.resolve().is_relative_to(folder.resolve())


def _fetch(url: str, allow_urls: bool) -> bytes:
    if not allow_urls and not url.lower().startswith("data:"):
        raise RowError("url_refused", f"{_truncated(url)!r} is a URL; set data.allow_urls=true to fetch it")
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise RowError("url_refused", f"{_truncated(url)!r}: only http, https and data URLs are fetched")
    request = urllib.request.Request(
        urllib.parse.quote(url, safe=string.punctuation), headers={"User-Agent": "scalecap"}
    )
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as reply:
            content: bytes = reply.read(MAX_URL_BYTES + 1)
    except Exception as error:  # urllib raises OSError, HTTPException and ValueError
        raise RowError("url_failed", f"{_truncated(url)!r} could not be fetched: {error}") from error
    if len(content) > MAX_URL_BYTES:
        raise RowError("too_large", f"{_truncated(url)!r} sends more than {MAX_URL_BYTES // 2**20} MiB")
    return content


def _decode(file: BinaryIO, name: str) -> Image:
    if not file.read(1):
        raise RowError("empty_file", f"{name} is empty (0 bytes)")
    file.seek(0)
    try:
        # For EPS alone Pillow starts an external program.
        Pillow.init()
        with Pillow.open(file, formats=[each for each in Pillow.ID if each != "EPS"]) as image:
            return _to_image(image, name)
    except RowError:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise RowError("too_large", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise RowError("unreadable_image", f"{name} is not an image in a supported format") from error
    except Exception as error:  # decoders of broken input raise many types
        if isinstance(error, EOFError) or "truncated" in str(error).lower():
            raise RowError("truncated_image", f"{name} is truncated: {error}") from error
        reason = f"can't decode {name}: {error or type(error).__name__}"
        raise RowError("unreadable_image", reason) from error


def _to_image(image: Pillow.Image, name: str) -> Image:
    """The first frame as `Image`. Raises RowError and whatever decoders raise."""
    width, height = image.size
    most = Pillow.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise RowError("too_large", f"{name} has {width}×{height} pixels; the limit is {most}: scale it down")
    if not width * height:
        raise RowError("unreadable_image", f"{name} has {width}×{height} pixels")
    image.load()
    return Image.of(_fit_size(_orient(_to_rgb(image), image)))


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith(("I", "F")):
        return _to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        white = Pillow.new("RGBA", image.size, "white")
        return Pillow.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Pillow.Image) -> Pillow.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0).clip(min=0)
    top = float(values.max())
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    full = next((scale for scale in scales if top <= scale), top)
    return Pillow.fromarray(np.rint(values * (255 / full)).astype(np.uint8))


def _orient(pixels: Pillow.Image, source: Pillow.Image) -> Pillow.Image:
    """Applies the EXIF orientation of `source`; broken EXIF is ignored."""
    try:
        turn = _UPRIGHT.get(source.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken metadata must not fail an image whose pixels are fine
        turn = None
    return pixels if turn is None else pixels.transpose(turn)


def _fit_size(pixels: Pillow.Image) -> Pillow.Image:
    """Pads or enlarges to sizes that image processors accept (see the module's docstring)."""
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
