import datetime
import json
from decimal import Decimal

import numpy as np
import pytest

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.sources import json_safe, open_source


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'jsonl'"):
        open_source(DataSettings(source="json"))


@pytest.mark.parametrize("source", ["jsonl", "folder", "hub", "webdataset", "parquet"])
def test_a_path_is_needed(source: str) -> None:
    with pytest.raises(DataError, match=rf"data={source} requires data\.path"):
        open_source(DataSettings(source=source))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataSettings(source="scenes", path="photos"), r"data\.path=photos: data=scenes .* data=folder"),
        (DataSettings(source="folder", path=".", count=5), r"data\.count=5 .* use data\.limit=5"),
    ],
)
def test_a_setting_of_another_source_is_not_ignored(data: DataSettings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(data)


def test_json_safe_values_have_no_pixels() -> None:
    value = {
        "image": {"bytes": b"\x89PNG", "path": "a.png"},
        "other": [{"bytes": b"\x89PNG", "path": None}, b"raw"],
        "when": datetime.date(2026, 1, 2),
        "price": Decimal("1.50"),
        "array": np.arange(4).reshape(2, 2),
        "scalar": np.float32("nan"),
        "pair": (1, True),
        3: "é",
        "huge": [2**60, 10**400, 10**5000],
    }
    assert json.loads(json.dumps(json_safe(value), allow_nan=False)) == {
        "image": {"path": "a.png"},
        "other": [None, None],
        "when": "2026-01-02",
        "price": "1.50",
        "array": [[0, 1], [2, 3]],
        "scalar": None,
        "pair": [1, True],
        "3": "é",
        "huge": [2**60, None, None],
    }
