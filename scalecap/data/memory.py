"""In-memory data of `Captioner.map`: converted to a `Dataset`, read as rows, joined with the captions."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.hub import rows_of
from scalecap.data.sources import RowSource
from scalecap.rows import OUTPUT_COLUMNS

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset


def to_dataset(data: Any, image: str) -> "Dataset | IterableDataset":
    """Converts data to a `Dataset` with undecoded images in a column of `datasets.Image`.

    Args:
        data: a `Dataset` or `IterableDataset` (returned unchanged), a pandas DataFrame, or a sequence of
            images (paths, bytes, PIL images) or of mappings.
        image: the column or key of the images.

    Raises:
        DataError: the data is none of these, or has no images.
    """
    import datasets
    import pandas as pd

    if isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return data
    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        splits = ", ".join(map(str, data))
        raise DataError(
            f"expected a Dataset, got a DatasetDict; pass one split ({splits}), as in map(data['train'])"
        )
    if isinstance(data, pd.DataFrame):
        # What is missing (NaN, NaT, NA) is null, whatever the type of its column.
        objects = data.astype(object).where(data.notna(), None)
        columns = {str(name): objects[name].tolist() for name in data.columns}
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        if all(isinstance(each, Mapping) and "bytes" not in each for each in data):
            names = dict.fromkeys(str(name) for each in data for name in each)
            columns = {name: [each.get(name) for each in data] for name in names}
        else:
            columns = {image: list(data)}
    else:
        single = isinstance(data, str | bytes | os.PathLike)
        raise DataError(
            f"expected a Dataset, a DataFrame or a list of images or mappings, got {type(data).__name__}"
            + ("; for a single image, call captioner(image)" if single else "")
        )
    if not columns or not next(iter(columns.values())):
        raise DataError("the data has no rows")
    if image not in columns:
        raise DataError(f"image={image!r}: the data has no such column; available: {', '.join(columns)}")
    feature = datasets.Image()
    cells = [_encode_cell(feature, cell, row) for row, cell in enumerate(columns.pop(image))]
    images = datasets.Dataset.from_dict({image: cells}, features=datasets.Features({image: feature}))
    others = [_one_column(name, values) for name, values in columns.items()]
    return datasets.concatenate_datasets([*others, images], axis=1)


def _one_column(name: str, values: list[Any]) -> "Dataset":
    import datasets

    try:
        return datasets.Dataset.from_dict({name: values})
    except Exception as error:  # pyarrow raises many types
        raise DataError(
            f"column {name!r}: its values share no type that a Dataset has ({error}); convert them, or leave"
            " the column out"
        ) from error


def _encode_cell(feature: Any, cell: Any, row: int) -> Any:
    """An image encoded for `datasets`."""
    if cell is None:
        return None
    if isinstance(cell, os.PathLike):
        cell = os.fspath(cell)
    try:
        return feature.encode_example(cell)
    except Exception as error:
        raise DataError(
            f"row {row}: expected a path, bytes or a PIL image, got {type(cell).__name__} ({error})"
        ) from error


def open_memory(table: "Dataset | IterableDataset", data: DataSettings) -> RowSource:
    """The rows of a data set in memory.

    Raises:
        DataError: it has no rows, or no column of images.
    """
    return rows_of(table, "the data", replace(data, allow_outside=True))  # paths are the caller's own


def with_captions(table: "Dataset | IterableDataset", written: Path) -> "Dataset":
    """Joins the data with the columns that a run wrote to `written`, its `dataset/` folder.

    A stream can't be joined: its rows are read from the folder, where their images were written too.
    """
    import datasets
    import pyarrow.parquet as pq

    files = sorted(str(path) for path in written.glob("*.parquet"))
    if not any(pq.read_metadata(file).num_rows for file in files):
        return _no_rows(table, datasets.Features.from_arrow_schema(pq.read_schema(files[0])))
    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        captions = datasets.Dataset.from_parquet(files)
    finally:
        if not disabled:
            datasets.enable_progress_bars()
    if not isinstance(table, datasets.Dataset):
        return captions
    kept = table.select_columns([name for name in table.column_names if name not in OUTPUT_COLUMNS])
    if len(captions) < len(kept):  # a preview
        kept = kept.select([int(id) for id in captions["row_id"]])
    new = captions.select_columns([name for name in captions.column_names if name not in kept.column_names])
    return datasets.concatenate_datasets([kept, new], axis=1)


def _no_rows(table: "Dataset | IterableDataset", captions: "Features") -> "Dataset":
    """An empty result, which `write.select` may leave; `datasets` neither opens nor joins empty files."""
    import datasets

    known = table.features if isinstance(table, datasets.Dataset) else {}
    features = {name: each for name, each in known.items() if name not in OUTPUT_COLUMNS}
    features |= {name: each for name, each in captions.items() if name not in features}
    return datasets.Dataset.from_dict({name: [] for name in features}, datasets.Features(features))
