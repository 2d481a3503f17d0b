"""Encoded images and tar files for tests."""

import io
import tarfile
from typing import Any

from PIL import Image


def an_image(color: Any = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB", **save: Any) -> bytes:
    """An image of one colour; PNG unless `format` says otherwise."""
    return encoded(Image.new(mode, size, color), **save)


def encoded(image: Image.Image, **save: Any) -> bytes:
    """The image encoded as a file; PNG unless `format` says otherwise."""
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **save})
    return buffer.getvalue()


def tar(*members: tuple[str, bytes]) -> bytes:
    """A tar of these files, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
