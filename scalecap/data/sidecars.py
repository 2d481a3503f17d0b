"""Sidecars: one text or JSON file per image, the input format of LoRA trainers.

In the run's folder a file is named after its row's id. An id may be any text, so each part of the path is
sanitized (it never leaves the folder), and a number is appended to a name that is taken. Beside the images, a
sidecar has its image's name with another extension.
"""

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalecap.config.exports import WriteSettings
from scalecap.data.folder import SUFFIXES
from scalecap.data.groups import Export, captioned_row, check_unchanged
from scalecap.data.seen import Seen
from scalecap.messages import MessageCounts
from scalecap.rows import RowError
from scalecap.text.templates import PromptError, Template

MAX_PART_BYTES = 200
"""Most bytes of one path component; file systems allow 255."""
MAX_PARTS = 8
"""Most path components; further ones are joined to the last."""
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\/]')
"""Characters that some file system forbids."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names reserved for devices on Windows."""


class SidecarText:
    """Renders the content of sidecars."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._template = Template(settings.template)

    def of(self, row: Mapping[str, Any]) -> bytes:
        """The content for a row. Captions are joined to one line, since trainers read only the first.

        Raises:
            PromptError: the template fails or renders to nothing.
        """
        if self._settings.sidecars == "json":
            return (json.dumps(row, ensure_ascii=False, indent=2) + "\n").encode()
        values = {name: "" if value is None else value for name, value in row.items()}
        caption = " ".join(self._template.render(**values).split())
        if not caption:
            raise PromptError("the caption is empty")
        return f"{self._settings.prefix}{caption}{self._settings.suffix}".encode()


class Sidecars:
    """Sink that writes files named after row ids; why a row has none is counted in `missing`."""

    def __init__(self, folder: Path, settings: WriteSettings, missing: MessageCounts) -> None:
        self._folder, self._text, self._missing = folder, SidecarText(settings), missing
        self._names = UniqueNames(f".{settings.sidecars}")

    def add(self, group: Sequence[Export]) -> None:
        for each in group:
            if each.row["error"] is not None:
                continue
            try:
                content = self._text.of(each.row)
            except PromptError as error:
                self._missing.add(str(error))
                continue
            path = self._folder / self._names.new(str(each.row["row_id"] or each.record["index"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class UniqueNames:
    """Generates file names that are unique on any file system (case-insensitive, NFC)."""

    def __init__(self, suffix: str) -> None:
        self._suffix, self._seen = suffix, Seen()
        self._numbers: dict[str, int] = {}
        """By repeated name, the last number appended."""

    def new(self, id: str) -> str:
        """A new relative path for an id, numbered if its name is taken."""
        name = self._clean(id)
        taken = name
        while not self._seen.add(unicodedata.normalize("NFC", taken).casefold()):
            self._numbers[name] = self._numbers.get(name, 1) + 1
            taken = f"{name}-{self._numbers[name]}"
        return taken + self._suffix

    def _clean(self, id: str) -> str:
        *folders, last = [part for part in map(_clean_part, id.split("/")) if part] or ["_"]
        if last.lower().endswith(SUFFIXES):
            last = last.rpartition(".")[0]
        parts = [*folders, last]
        if len(parts) > MAX_PARTS:
            parts = [*parts[: MAX_PARTS - 1], "_".join(parts[MAX_PARTS - 1 :])]
        *folders, last = map(_truncated, parts)
        # A folder must not have the name of a file.
        folders = [part + "_" if part.lower().endswith(self._suffix) else part for part in folders]
        return "/".join([*folders, last])


def _clean_part(text: str) -> str:
    """A path component that every file system allows; empty if nothing is left of it."""
    text = _NOT_IN_NAMES.sub("_", text.encode("utf-8", "replace").decode()).strip(" ").rstrip(". ")
    if text.startswith("."):
        text = "_" + text[1:]
    return "_" + text if _DEVICES.fullmatch(text) else text


def _truncated(text: str) -> str:
    return text.encode()[:MAX_PART_BYTES].decode(errors="ignore")


class BesideImages:
    """Sink that writes files next to the images."""

    def __init__(self, image: str, settings: WriteSettings, missing: MessageCounts) -> None:
        """`image` is the image column; why an image has no sidecar is counted in `missing`."""
        self._image, self._text, self._missing = image, SidecarText(settings), missing
        self._suffix, self._replace = f".{settings.sidecars}", settings.beside == "replace"
        self._seen = Seen()

    def add(self, group: Sequence[Export]) -> None:
        for each in group:
            if each.row["error"] is not None:
                continue
            try:
                self._write(self._path(each), self._text.of(each.row))
            except (RowError, PromptError) as error:
                self._missing.add(str(error))
            except OSError as error:
                self._missing.add(f"can't write {str(error.filename)!r}: {error.strerror}")

    def _path(self, each: Export) -> Path:
        """Path of an image's sidecar. Raises RowError if the image is not a local file or was replaced."""
        row = captioned_row(each)
        if row.find_image is None:
            raise RowError("no_file", "the image is not a local file")
        image = Path(os.path.abspath(row.find_image()))  # the path that was checked, links unresolved
        check_unchanged(each, self._image)
        path = image.with_suffix(self._suffix)
        if not self._seen.add(str(path)):
            raise RowError("taken", f"{str(path)!r} is the sidecar of another image")
        if path == image:
            raise RowError("taken", f"{str(path)!r} is the image itself")
        return path

    def _write(self, path: Path, content: bytes) -> None:
        """Writes a file. Raises RowError if another one exists and may not be replaced, or OSError."""
        try:
            with path.open("xb") as file:
                file.write(content)
            return
        except FileExistsError:
            if path.is_file() and path.read_bytes() == content:
                return
            if not self._replace:
                raise RowError(
                    "taken", f"{str(path)!r} already exists; set write.beside=replace to replace it"
                ) from None
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)  # of a run that was killed
        with part.open("xb") as file:
            file.write(content)
        try:
            os.replace(part, path)  # replaces a link, not its target
        finally:
            part.unlink(missing_ok=True)
