"""`data=webdataset`: tar shards in the WebDataset format (a sample's files share a name up to the first dot).

Only headers are read while a shard is iterated; an image is read by its offset when its row needs it. Text
files become columns: the keys of `json` files, and `txt`, `text`, `caption` and `cls` under these names (a
key whose name is taken becomes `json.<key>`). Other files are not read. Member names are never paths.

A row's id is `shard#key`: the shard as `data.path` names it (with `#` escaped as `\\#`) and the sample's key,
with `#2` appended to a repeated one.

`datasets` streams such tars too (`data=hub`), but it reads every member on the way, and its iterator ends at
the first malformed sample.
"""

import json
import logging
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import IO, Any

from scalecap.config.settings import DataSettings
from scalecap.data import DataError, FinishedParts
from scalecap.data.files import File, error_text, find_files
from scalecap.data.folder import SUFFIXES
from scalecap.data.images import open_image
from scalecap.data.seen import Seen
from scalecap.data.sources import (
    SCHEMA_SAMPLE_ROWS,
    RowSource,
    escaped_name,
    infer_kinds,
    json_safe,
    partitioned,
    required_path,
)
from scalecap.engines.base import Image
from scalecap.rows import Row, RowError, unreadable_row

log = logging.getLogger(__name__)

KEY_COLUMN = "__key__"
"""Column of the sample's key."""
TEXT_EXTENSIONS = ("txt", "text", "caption", "cls")
MAX_TEXT_BYTES = 16 * 2**20
"""Largest text member, in bytes."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
"""Key and extension of a member."""


@dataclass(frozen=True)
class Member:
    """A file in a tar, by offset and size."""

    file: File
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file.name}#{self.name}"

    def read(self) -> bytes:
        """Reads the member. Raises RowError."""
        content = self.file.read(self.offset, self.size)
        if len(content) < self.size:
            raise RowError("truncated_member", f"{str(self)!r} is truncated")
        return content

    def open(self) -> Image:
        """Opens the member as an image. Raises RowError."""
        return open_image({"bytes": self.read(), "path": str(self)})


def open_webdataset(data: DataSettings) -> RowSource:
    """One row per sample; their number is not known in advance.

    Raises:
        DataError: no sample can be read.
    """
    path = required_path(data)
    files = find_files(path, ".tar")
    rows = partitioned(partial(_unfinished, files, data.image))
    first = list(islice(rows, SCHEMA_SAMPLE_ROWS))
    read = [row.columns for row in first if row.error is None]
    if not first:
        raise DataError(f"{path!r} has no samples; expected tar files with members KEY.jpg, KEY.json, …")
    if not read:
        raise DataError(f"none of the first {len(first)} samples of {path!r} can be read: {first[0].error}")
    return replace(rows, columns=infer_kinds(read))


def _unfinished(files: list[File], image: str, finished: FinishedParts) -> Iterator[Row | range]:
    """The rows of all shards; a finished shard is yielded as the range of its indices."""
    index = 0
    for file in files:
        try:
            size, stamp = file.stat()
        except RowError as error:
            yield unreadable_row(index, {image: file.name}, error, id=_id(file))
            index += 1
            continue
        stamp, first, before = f"{image} in {stamp}", index, None
        if rows := finished(stamp, first):
            yield range(first, first + rows)
            index += rows
            continue
        seen = Seen()
        for row in _samples(file, size, image):
            if before:
                yield before
            id, number = row.id, 1
            while not seen.add(id):
                number += 1
                id = f"{row.id}#{number}"
            before = replace(row, index=index, stamp=stamp, id=id)
            index += 1
        if before:
            yield replace(before, part=(first, index - first))


def _id(file: File, key: str | None = None) -> str:
    """The unique id of a sample, or of an unreadable shard."""
    shard = escaped_name(file.name).replace("#", "\\#")
    return shard if key is None else f"{shard}#{escaped_name(key)}"


def _samples(file: File, size: int | None, image: str) -> Iterator[Row]:
    """The samples of one shard, with index 0; an error ends them with the sample it occurred in."""
    key, members = "", list[Member]()
    try:
        with file.open() as tar:
            for info in _members(tar, file.name):
                found = _NAME.fullmatch(info.name)
                if not info.isfile() or info.issparse() or not found:
                    continue
                if found[1] != key:
                    if members:
                        yield _row(key, members, image, tar)
                    key, members = found[1], []
                members.append(Member(file, json_safe(info.name), info.offset_data, info.size))
                if size is not None and info.offset_data + info.size > size:
                    raise RowError(
                        "truncated_member", f"{str(members[-1])!r} is truncated: its shard ends before it"
                    )
            if members:
                yield _row(key, members, image, tar)
    except Exception as error:  # tarfile and file systems raise many types
        if not isinstance(error, RowError):
            where = f" after {key!r}" if members else " as a tar"
            error = RowError("unreadable_shard", f"can't read {file.name!r}{where}: {error_text(error)}")
        cell = f"{file.name}#{json_safe(key)}" if members else file.name
        yield unreadable_row(0, {image: cell}, error, id=_id(file, key if members else None))


def _members(file: IO[bytes], name: str) -> Iterator[tarfile.TarInfo]:
    """The members, by seeking from header to header. Raises `tarfile.ReadError`."""
    if file.read(6).startswith(_COMPRESSED):
        raise tarfile.ReadError("it is compressed, so that members can't be read by offset; decompress it")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all members
            yield member
        # tarfile treats a damaged header as the end of the archive.
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if any(block):
            raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
        if not block:
            log.warning("%s has no end-of-archive marker: its writer may have been interrupted", name)


def _row(key: str, members: list[Member], image: str, tar: IO[bytes]) -> Row:
    cell, id = f"{members[0].file.name}#{json_safe(key)}", _id(members[0].file, key)
    try:
        member = _image_member(cell, members, image)
        columns = {
            image: str(member),
            KEY_COLUMN: json_safe(key),
            **_text_columns(members, {image, KEY_COLUMN}, tar),
        }
    except RowError as error:
        return unreadable_row(0, {image: cell}, error, id=id)
    return Row(0, columns, member.open, read_image=member.read, id=id)


def _extension(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _image_member(cell: str, members: list[Member], image: str) -> Member:
    """The member with the extension `data.image`, else the only image."""
    names = ", ".join(member.name for member in members)
    found = [member for member in members if _extension(member) == image.lower()]
    found = found or [member for member in members if member.name.lower().endswith(SUFFIXES)]
    if not found:
        raise RowError("no_image", f"sample {cell!r} has no image: its files are {names}")
    if len(found) > 1:
        raise RowError(
            "two_images",
            f"sample {cell!r} has {len(found)} images ({', '.join(each.name for each in found)});"
            " choose one by data.image=EXTENSION",
        )
    return found[0]


def _text_columns(members: list[Member], taken: set[str], tar: IO[bytes]) -> dict[str, Any]:
    """The columns of a sample's text members."""
    columns: dict[str, Any] = {}
    objects: list[Mapping[str, Any]] = []
    for member in members:
        name = _extension(member)
        last = name.rpartition(".")[2]
        if name in taken or last not in (*TEXT_EXTENSIONS, "json"):
            continue
        if name in columns:
            raise RowError("two_members", f"{str(member)!r} occurs twice")
        text = _read_text(member, tar)
        try:
            value = json_safe(json.loads(text)) if last == "json" else int(text) if last == "cls" else text
        except (ValueError, RecursionError) as error:
            what = "JSON" if last == "json" else "a number"
            raise RowError(f"invalid_{last}", f"{str(member)!r} is not {what}: {error}") from error
        if name == "json" and isinstance(value, dict):
            objects.append(value)
        else:
            columns[name] = value
    if len(objects) > 1:
        raise RowError("two_members", f"{str(members[0])!r} has two files named json")
    for each in objects:
        columns |= {f"json.{key}" if key in taken | columns.keys() else key: each[key] for key in each}
    return columns


def _read_text(member: Member, tar: IO[bytes]) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise RowError("too_large", f"{str(member)!r} has more than {MAX_TEXT_BYTES // 2**20} MiB")
    tar.seek(member.offset)
    try:
        return tar.read(member.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("invalid_text", f"{str(member)!r} is not UTF-8: {error}") from error
