"""Data in memory, as `Captioner.map` takes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from scalecap.data import DataError
from scalecap.data.memory import to_dataset, with_captions

IMAGE = Pillow.new("RGB", (30, 30))


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, pd.NaT])
@pytest.mark.parametrize("value", ["a", 1, 2.5, ["a"], pd.Timestamp("2026-01-02"), True])
def test_what_a_frame_lacks_is_null(value: Any, missing: Any):
    frame = pd.DataFrame({"image": [IMAGE, missing], "x": pd.Series([value, missing], dtype=object)})
    found = to_dataset(frame, "image")
    assert found["x"][:] == [value, None]
    assert found.cast_column("image", found.features["image"].__class__(decode=False))["image"][1] is None


@pytest.mark.parametrize("values", [[1, "a"], [["a"], "b"], [2**70, 1], ["a", float("nan")], [object()] * 2])
def test_a_column_whose_values_share_no_type_is_named(values: list[Any]):
    with pytest.raises(DataError, match="column 'x': its values share no type that a Dataset has"):
        to_dataset([{"image": IMAGE, "n": 1, "x": value} for value in values], "image")


@pytest.mark.parametrize("written", [[], ["1"], ["0", "1"]])
def test_the_rows_that_were_written_are_joined_even_if_there_are_none(tmp_path: Path, written: list[str]):
    table = to_dataset([{"image": IMAGE, "n": number} for number in range(2)], "image")
    captions = {
        "row_id": pa.array(written, pa.string()),
        "x": pa.array([f"x{id}" for id in written], pa.string()),
    }
    pq.write_table(pa.table(captions), tmp_path / "train-00000-of-00001.parquet")
    joined = with_captions(table, tmp_path)
    assert joined.column_names == ["n", "image", "row_id", "x"]
    assert joined["n"][:] == [int(id) for id in written]
    assert joined["x"][:] == [f"x{id}" for id in written]
