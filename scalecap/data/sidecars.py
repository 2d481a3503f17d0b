"""Sidecars: a text or JSON file for each picture, as trainers of LoRA adapters read them.

In a folder of the run its name comes from the row's id, which may be any text: each part of it is cleaned, so
that it never leads out of the folder, and an id whose name is taken gets a number. Beside the pictures it is
the picture's own name with another suffix.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scalecap.config.exports import WriteSettings
from scalecap.data.folder import SUFFIXES
from scalecap.data.groups import Export, captioned_row, check_unchanged
from scalecap.data.replacing import replacing
from scalecap.data.seen import Seen
from scalecap.messages import MessageCounts
from scalecap.rows import RowError
from scalecap.text.templates import PromptError, Template

MAX_PART_BYTES = 200
"""Bytes of one part of a name; file systems take 255."""
MAX_PARTS = 8
"""Parts of a name; the rest of them are its last."""
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\\/]')
"""What some file system does not take."""
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""What Windows takes for a device."""


class SidecarText:
    """What a row's sidecar holds."""

    def __init__(self, settings: WriteSettings) -> None:
        self._settings = settings
        self._template = Template(settings.template)

    def of(self, row: Mapping[str, Any]) -> bytes:
        """Raises PromptError when the template can't be rendered, or makes no text.

        A caption is on one line, since trainers read no further than the first.
        """
        if self._settings.sidecars == "json":
            return (json.dumps(row, ensure_ascii=False, indent=2) + "\n").encode()
        values = {name: "" if value is None else value for name, value in row.items()}
        caption = " ".join(self._template.render(**values).split())
        if not caption:
            raise PromptError("the caption is empty")
        return f"{self._settings.prefix}{caption}{self._settings.suffix}".encode()


class Sidecars:
    """Files in a folder of their own, by the rows' ids."""

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


@contextmanager
def sidecars(folder: Path, settings: WriteSettings, missing: MessageCounts) -> Iterator[Sidecars]:
    """Takes the rows, and puts their files in place of those that were there; the reasons of those without
    one are counted in `missing`."""
    with replacing(folder) as part:
        yield Sidecars(part, settings, missing)


class UniqueNames:
    """Names of files, no two of them alike on any file system."""

    def __init__(self, suffix: str) -> None:
        self._suffix, self._seen = suffix, Seen()
        self._numbers: dict[str, int] = {}
        """Of the names that several ids make, the last number given."""

    def new(self, id: str) -> str:
        """A relative path with the suffix; that a name was there before shows in its number."""
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
        parts = (
            [*parts[: MAX_PARTS - 1], "_".join(parts[MAX_PARTS - 1 :])] if len(parts) > MAX_PARTS else parts
        )
        *folders, last = map(_truncated, parts)
        # No folder has a name that a file may have.
        folders = [part + "_" if part.lower().endswith(self._suffix) else part for part in folders]
        return "/".join([*folders, last])


def _clean_part(text: str) -> str:
    """One part of a path as every file system takes it; empty where nothing is left."""
    text = _NOT_IN_NAMES.sub("_", text.encode("utf-8", "replace").decode()).strip(" ").rstrip(". ")
    if text.startswith("."):
        text = "_" + text[1:]
    return "_" + text if _DEVICES.fullmatch(text) else text


def _truncated(text: str) -> str:
    return text.encode()[:MAX_PART_BYTES].decode(errors="ignore")


class BesideImages:
    """Files next to the pictures', under their names."""

    def __init__(self, image: str, settings: WriteSettings, missing: MessageCounts) -> None:
        """`image` is the column of the pictures; why a picture got no file is counted in `missing`."""
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
                self._missing.add(f"{str(error.filename)!r} can't be written: {error.strerror}")

    def _path(self, each: Export) -> Path:
        """Where its file belongs. Raises RowError when the picture is no file, or another one now."""
        row = captioned_row(each)
        if row.find_image is None:
            raise RowError("no_file", "the picture is no file on this disk")
        picture = Path(os.path.abspath(row.find_image()))  # what was allowed, whatever its links are
        check_unchanged(each, self._image)
        path = picture.with_suffix(self._suffix)
        if not self._seen.add(str(path)):
            raise RowError("taken", f"{str(path)!r} belongs to another picture of that name")
        if path == picture:
            raise RowError("taken", f"{str(path)!r} is the picture itself")
        return path

    def _write(self, path: Path, content: bytes) -> None:
        """Raises RowError when another file is there that must stay, OSError when it can't be written."""
        try:
            with path.open("xb") as file:
                file.write(content)
            return
        except FileExistsError:
            if path.is_file() and path.read_bytes() == content:
                return
            if not self._replace:
                raise RowError(
                    "taken", f"{str(path)!r} was there already; write.beside=replace replaces it"
                ) from None
        part = path.with_name(path.name + ".part")
        with part.open("xb") as file:
            file.write(content)
        try:
            os.replace(part, path)  # a link itself, not what it leads to
        finally:
            part.unlink(missing_ok=True)
