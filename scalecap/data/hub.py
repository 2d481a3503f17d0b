"""`data=hub`: any Hugging Face data set, by its hub name or from local files.

`data.path` is a hub name, a folder (parquet, webdataset tars, images, save_to_disk), or files by name or
pattern (`shards/*.tar`). Images are decoded by scalecap, so that a corrupt one fails its own row and not the
iterator; with `data.streaming=true` nothing is downloaded in advance. A row's id is its index.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.images import find_image, image_stamp, open_image, read_image
from scalecap.data.shard import WHOLE, Shard
from scalecap.data.sources import SCHEMA_SAMPLE_ROWS, RowSource, infer_kinds, json_safe, required_path
from scalecap.rows import Row, RowError
from scalecap.text.suggestions import did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_BUILDERS = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
}
"""Builder of `datasets` for a file extension; it finds its own for folders and hub names."""


def open_hub(data: DataSettings) -> RowSource:
    """The rows of one split.

    Raises:
        DataError: the data set, split or image column does not exist, or the hub is not reachable.
    """
    path = required_path(data)
    if not path.startswith(("hf://", "http://", "https://")):
        path = str(Path(path).expanduser())
    return rows_of(_load_checked(path, data), path, data)


def rows_of(opened: "Dataset | IterableDataset", path: str, data: DataSettings) -> RowSource:
    """The rows of a loaded data set.

    Args:
        path: where it was loaded from, for messages and relative image paths.

    Raises:
        DataError: it has no rows, or no column `data.image`.
    """
    total = _total(opened, data.split)
    stream = opened.to_iterable_dataset() if hasattr(opened, "to_iterable_dataset") else opened
    if stream.features is None:
        columns = infer_kinds(json_safe(row) for row in _checked(islice(stream, SCHEMA_SAMPLE_ROWS), path))
    else:
        columns = {name: _kind(feature) for name, feature in stream.features.items()}
        stream = stream.decode(False)
    if not columns or total == 0:
        raise DataError(f"{path!r} has no rows" + (f" in its split {data.split!r}" if data.path else ""))
    if data.image not in columns:
        raise DataError(
            f"data.image={data.image}: {path!r} has no such column{did_you_mean(data.image, columns)}"
        )
    iterate_shard = partial(_rows, opened, stream, path, data)
    return RowSource(columns, total, iterate_shard, iterate_shard=iterate_shard)


def _load_checked(path: str, data: DataSettings) -> "Dataset | IterableDataset":
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HFValidationError

    try:
        return _load(path, data)
    except DataError:
        raise
    except (DatasetNotFoundError, HFValidationError) as error:
        raise DataError(
            f"{path!r} is neither a local file or folder nor an accessible data set on the hub: {error}"
            " (for a gated one, log in with `hf auth login`)"
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"can't reach the hub for {path!r} ({error}); set data.path to a local file or folder, or"
            " HF_HUB_OFFLINE=1 to use the local cache"
        ) from error
    except Exception as error:  # builders raise many types
        raise DataError(f"can't open {path!r}: {error} {error.__cause__ or ''}".rstrip()) from error


def _load(path: str, data: DataSettings) -> "Dataset | IterableDataset":
    import datasets

    where = Path(path)
    local = where.exists()
    if (where / "dataset_dict.json").is_file() or (where / "state.json").is_file():
        saved = datasets.load_from_disk(path)
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if data.split not in saved:
            raise _no_split(path, data.split, list(saved))
        return saved[data.split]
    builder = None if where.is_dir() else _BUILDERS.get(where.suffix)
    named = not local and not any(each in path for each in "*?[:")
    if named and (builder or path.startswith(("/", "./", "../"))):
        what = "file" if builder else "folder"
        raise DataError(f"no such {what}: data.path={path!r}; expected a file, a folder or a hub name")
    source = builder or path
    more = {"revision": data.revision} | ({"data_files": path} if builder else {})
    try:
        return datasets.load_dataset(source, data.name, split=data.split, streaming=data.streaming, **more)
    except ValueError as error:
        names = datasets.get_dataset_split_names(source, data.name, **more)
        if data.split.isidentifier() and data.split not in names:
            raise _no_split(path, data.split, names) from error
        raise


def _no_split(path: str, split: str, names: list[str]) -> DataError:
    return DataError(f"data.split={split}: {path!r} has no such split{did_you_mean(split, names)}")


def _total(opened: "Dataset | IterableDataset", split: str) -> int | None:
    if hasattr(opened, "num_rows"):
        return int(opened.num_rows)
    info = (opened.info.splits or {}).get(split)
    rows: int | None = info.num_examples if info is not None else None
    return rows or None


def _kind(feature: Any) -> str:
    """The kind of a column by its feature type."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None:
        return "texts" if _kind(inner) == "text" else "any"
    dtype = str(getattr(feature, "dtype", ""))
    if dtype.startswith(("string", "large_string")):
        return "text"
    return "number" if re.match(r"u?int\d|float\d", dtype) else "any"


def _checked(rows: Iterator[Any], path: str) -> Iterator[dict[str, Any]]:
    """The rows; whatever their reader raises becomes a DataError."""
    count = 0
    try:
        for row in rows:
            yield row
            count += 1
    except Exception as error:  # readers of broken files raise many types
        raise DataError(f"can't read {path!r} beyond its first {count} rows: {error}") from error


def _rows(
    opened: "Dataset | IterableDataset",
    stream: "IterableDataset",
    path: str,
    data: DataSettings,
    shard: Shard = WHOLE,
) -> Iterator[Row]:
    """The rows of a shard. A local data set is read only there; of a stream, the images of other shards' rows
    are downloaded too, and dropped without being hashed."""
    where = Path(path)
    local = where.exists()
    folders = [where if where.is_dir() else where.parent, Path.cwd()] if local else [Path.cwd()]
    within = None if data.allow_outside else [*folders[:-1], *_cache_folders()]
    places: Iterable[int] = itertools.count()
    if shard != WHOLE and hasattr(opened, "select"):
        places = shard.select(range(len(opened)))
        stream = opened.select(places).to_iterable_dataset().decode(False)
    index = -1
    for index, row in zip(places, _checked(iter(stream), path), strict=False):
        if not shard.contains(index):
            continue
        cell = row.get(data.image)
        columns = {name: json_safe(value) for name, value in row.items()}
        shown, copied = (partial(_resolve_cell, cell, local, each) for each in (None, within))
        read = partial(read_image, copied, folders=folders, allow_urls=data.allow_urls, within=within)
        yield Row(
            *(index, columns, partial(open_image, shown, folders=folders, allow_urls=data.allow_urls)),
            stamp=image_stamp(cell, folders=folders),
            read_image=read,
            find_image=partial(find_image, cell, folders=folders, within=within),
        )
    if index < 0 and shard == WHOLE:
        raise DataError(f"{path!r} has no rows in its split {data.split!r}")


def _cache_folders() -> list[Path]:
    """Cache folders of `datasets` and the hub client, where the files that cells name may be."""
    from datasets import config
    from huggingface_hub import constants

    return [Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]


def _resolve_cell(cell: Any, local: bool, within: list[Path] | None = None) -> Any:
    """The cell; of a streamed data set, an image inside an archive or on the hub is read now.

    Cells of a local data set may not point to the hub. A local file or archive must be inside one of
    `within`; None allows every path.
    """
    if isinstance(cell, Mapping) and cell.get("bytes") is None:
        place = str(cell.get("path") or "")
        *links, last = place.split("::")  # zip://a.png::hf://datasets/…, or a path at the end
        links += [last] if "://" in last else []
        schemes = {link.partition("://")[0] for link in links}
        if schemes and schemes <= {"zip", "tar", "gzip", "file", *([] if local else ["hf"])}:
            import fsspec

            if within is not None and not last.startswith("hf://"):
                find_image(last.removeprefix("file://"), within=within)
            try:
                with fsspec.open(place, "rb") as file:
                    cell = {"bytes": file.read(), "path": place}
            except Exception as error:  # file systems raise their own kinds
                raise RowError("missing_file", f"{place!r} could not be read: {error}") from error
    return cell
