"""`data=webdataset`: tar shards whose samples are files that share a name up to its first dot.

A shard is walked by its headers: a sample's picture is left where it is until its row asks for it, and is
then read by its place in the tar. Small texts beside it become columns: the keys of `json`, and `txt`,
`text`, `caption` and `cls` under their own names; a key whose name is taken is `json.<key>`. Other files
are not read. A member's name is text and never a path.

A row's id is `shard#key`, the shard as `data.path` names it (a `#` in its name is written `\\#`); a key that
is there again in its shard has `#2` behind it.

`datasets` streams such tars too (`data=hub`), but reads every body on its way, and its iterator ends at the
first sample that is not well-formed.
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

KEY = "__key__"
"""The column of a sample's name."""
TEXTS = ("txt", "text", "caption", "cls")
LARGEST = 16 * 2**20
"""Bytes of a text beside a picture."""
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
"""What a sample is called, and the rest of a member's name."""


@dataclass(frozen=True)
class Member:
    """A file inside of a tar, by its place."""

    file: File
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.file.name}#{self.name}"

    def read(self) -> bytes:
        """Its bytes and no others. Raises RowError."""
        content = self.file.read(self.offset, self.size)
        if len(content) < self.size:
            raise RowError("truncated_member", f"{str(self)!r} is cut off")
        return content

    def open(self) -> Image:
        """The picture that it is. Raises RowError."""
        return open_image({"bytes": self.read(), "path": str(self)})


def open_webdataset(data: DataSettings) -> RowSource:
    """A row for each sample, its total not known before the end. Raises DataError when none can be read."""
    path = required_path(data)
    files = find_files(path, ".tar")
    rows = partitioned(partial(_unfinished, files, data.image))
    looked = list(islice(rows, SCHEMA_SAMPLE_ROWS))
    read = [row.columns for row in looked if row.error is None]
    if not looked:
        raise DataError(f"{path!r} holds no samples: files named KEY.jpg, KEY.json … in a tar")
    if not read:
        raise DataError(f"no sample of {path!r} can be read (looked at {len(looked)}); {looked[0].error}")
    return replace(rows, columns=infer_kinds(read))


def _unfinished(files: list[File], image: str, finished: FinishedParts) -> Iterator[Row | range]:
    """The rows of all shards; in place of a finished shard the indices of its rows."""
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
    """Of a sample, or of a shard that can't be read; no two become the same."""
    shard = escaped_name(file.name).replace("#", "\\#")
    return shard if key is None else f"{shard}#{escaped_name(key)}"


def _samples(file: File, size: int | None, image: str) -> Iterator[Row]:
    """The samples of one shard, not yet numbered; what can't be read on ends with the sample it was in."""
    key, members = "", list[Member]()
    try:
        with file.open() as tar:
            for info in _headers(tar, file.name):
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
                        "truncated_member", f"{str(members[-1])!r} is cut off: its shard ends before it does"
                    )
            if members:
                yield _row(key, members, image, tar)
    except RowError as error:
        yield _unreadable(file, key if members else None, image, error)
    except Exception as error:  # tarfile and file systems raise what broken files make them raise
        where = f" after {key!r}" if members else " as a tar"
        reason = RowError("unreadable_shard", f"{file.name!r} can't be read{where}: {error_text(error)}")
        yield _unreadable(file, key if members else None, image, reason)


def _unreadable(file: File, key: str | None, image: str, error: RowError) -> Row:
    cell = file.name if key is None else f"{file.name}#{json_safe(key)}"
    return unreadable_row(0, {image: cell}, error, id=_id(file, key))


def _headers(file: IO[bytes], name: str) -> Iterator[tarfile.TarInfo]:
    """The members, by seeking from header to header. Raises tarfile's errors."""
    if file.read(6).startswith(_COMPRESSED):
        raise tarfile.ReadError("it is compressed, so its members have no place; unpack it to a plain tar")
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
            yield member
        # tarfile takes a damaged header for the end.
        file.seek(tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if any(block):
            raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
        if not block:
            log.warning("%s has no end mark: whoever wrote it may have been stopped", name)


def _row(key: str, members: list[Member], image: str, tar: IO[bytes]) -> Row:
    cell, id = f"{members[0].file.name}#{json_safe(key)}", _id(members[0].file, key)
    try:
        picture = _picture(cell, members, image)
        columns = {image: str(picture), KEY: json_safe(key), **_texts(members, {image, KEY}, tar)}
    except RowError as error:
        return unreadable_row(0, {image: cell}, error, id=id)
    return Row(0, columns, picture.open, read_image=picture.read, id=id)


def _extension(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _picture(cell: str, members: list[Member], image: str) -> Member:
    """The member that `data.image` names by its extension, else the only one that is a picture."""
    names = ", ".join(member.name for member in members)
    found = [member for member in members if _extension(member) == image.lower()]
    found = found or [member for member in members if member.name.lower().endswith(SUFFIXES)]
    if not found:
        raise RowError("no_picture", f"sample {cell!r} has no picture: its files are {names}")
    if len(found) > 1:
        raise RowError(
            "two_pictures",
            f"sample {cell!r} has {len(found)} pictures ({', '.join(each.name for each in found)});"
            " data.image=EXTENSION says which",
        )
    return found[0]


def _texts(members: list[Member], taken: set[str], tar: IO[bytes]) -> dict[str, Any]:
    """The columns that the small texts of a sample make."""
    columns: dict[str, Any] = {}
    objects: list[Mapping[str, Any]] = []
    for member in members:
        name = _extension(member)
        last = name.rpartition(".")[2]
        if name in taken or last not in (*TEXTS, "json"):
            continue
        if name in columns:
            raise RowError("two_members", f"{str(member)!r} is there twice")
        text = _text(member, tar)
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


def _text(member: Member, tar: IO[bytes]) -> str:
    if member.size > LARGEST:
        raise RowError("too_large", f"{str(member)!r} has more than {LARGEST // 2**20} MiB")
    tar.seek(member.offset)
    try:
        return tar.read(member.size).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("invalid_text", f"{str(member)!r} is not UTF-8: {error}") from error
