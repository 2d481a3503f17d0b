"""`webdataset/`, as the webdataset library and `data=webdataset` read it back."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import webdataset
from image_files import an_image
from runs import captions

from scalecap.config.exports import WriteSettings
from scalecap.config.settings import DataSettings
from scalecap.data import writer
from scalecap.data.sources import open_source
from scalecap.rows import Row


def test_tars_are_bounded_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "SHARD_ROWS", 2)
    records: list[dict[str, Any]] = [
        {
            **{"index": n, "id": f"../{n}.exe", "input": {"image": f"../{n}.exe"}, "columns": {"x": "é"}},
            **{"flags": {}, "error": None},
        }
        for n in range(7)
    ]
    records[1]["error"] = {"step": "x", "kind": "Timeout", "message": "late"}
    forms = ["PNG", "JPEG", "WEBP", "JPEG", "PNG", "PNG", "PNG"]
    rows = [
        Row(
            n,
            {"image": f"../{n}.exe"},
            lambda: None,
            read_image=partial(an_image, (n, 0, 0), format=form),
            id=f"../{n}.exe",
        )
        for n, form in enumerate(forms)
    ]
    settings = WriteSettings(format=["webdataset"])
    written = writer.write(tmp_path, lambda: records, ["x"], settings, data=rows[:6])
    assert dict(written.missing_images) == {"the data now has another row at this index": 1}
    assert not (tmp_path / "dataset").exists()
    tars = sorted(str(path) for path in (tmp_path / "webdataset").glob("*"))
    assert [Path(tar).name for tar in tars if tar.endswith(".tar")] == [
        f"train-0000{n}.tar" for n in range(3)
    ]

    samples = list(webdataset.WebDataset(tars[-3:], shardshuffle=False, empty_check=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in (0, 2, 3, 4, 5)]
    lines = captions(tmp_path)
    for sample, suffix in zip(samples, ["png", "webp", "jpg", "png", "png"], strict=True):
        assert sample[suffix].size == (40, 30)
        assert sample["json"] == lines[int(sample["__key__"])]

    source = open_source(DataSettings(source="webdataset", path=str(tmp_path / "webdataset")))
    assert [row.columns["row_id"] for row in source] == [f"../{n}.exe" for n in (0, 2, 3, 4, 5)]
