"""A package outside of scalecap, installed as its users would, with one of each that a package can add."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from processes import python
from runs import Command, captions

pytest.importorskip("hatchling", reason='needs pip install "scalecap[dev]"')

PACKAGE = Path(__file__).parent / "extension"
ROOT = PACKAGE.parent.parent
WORDS = (
    *("hydra.searchpath=[pkg://swatches.conf]", "data=colours", "model=palette", "pipeline=colours"),
    *("evaluate=excess", "write.format=[parquet,swatches/csv]", "write.image=bytes", "output=out"),
    *("cache.dir=cache", "progress=false"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed in."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    copy = tmp_path_factory.mktemp("source") / "extension"  # a build leaves nothing in the checkout
    subprocess.run(["cp", "-r", str(PACKAGE), str(copy)], check=True)
    subprocess.run([*pip, "--target", str(folder), str(copy)], check=True)
    return folder


@pytest.fixture
def plugged(installed: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in this process, with the package to be found."""
    monkeypatch.syspath_prepend(str(installed))
    return command


@pytest.mark.slow
def test_a_package_brings_an_engine_a_source_a_sink_a_stage_and_a_metric(installed: Path, tmp_path: Path):
    words = ("-P", "-m", "scalecap", *WORDS, "data.args.colours=[blue,red]")
    found = python(*words, path=f"{installed}:{ROOT}")
    assert found.returncode == 0, found.stderr
    assert "Warning" not in found.stderr
    assert f"{Path('out/swatches-csv')}  made by another package" in found.stdout
    rows = captions("out")
    assert [(row["row_id"], row["colour"]) for row in rows] == [("blue", "blue"), ("red", "red")]
    assert [row["caption"] for row in rows] == [
        "The picture is blue. It is plain.",
        "The picture is red. It is plain.",
    ]
    assert [row["final_caption"] for row in rows] == ["The picture is blue.", "The picture is red."]
    assert rows[0]["excess"] == {"caption": {"excess": 3}, "final_caption": {"excess": 0}}
    images = [row["image"]["bytes"] for row in pq.read_table(tmp_path / "out" / "dataset").to_pylist()]
    with (tmp_path / "out" / "swatches-csv" / "captions.csv").open() as file:
        table = list(csv.reader(file))
    assert table == [
        ["row_id", "final_caption", "bytes"],
        ["blue", "The picture is blue.", str(len(images[0]))],
        ["red", "The picture is red.", str(len(images[1]))],
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["models"] == {"vlm": "swatches/palette palette"}
    assert summary["metrics"]["excess.caption.excess"]["mean"] == 3


def summary_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "summary.json").read_text())
    return found


def test_its_replies_are_reused_unless_a_setting_may_change_them(plugged: Command, capsys):
    assert plugged(*WORDS) == 0
    assert plugged(*WORDS, "output=again") == 0
    assert summary_of("again")["requests"] == {"total": 3, "reused": 3, "retried": 0}
    assert plugged(*WORDS, "output=loud", "engine.args.shout=true") == 0
    assert summary_of("loud")["requests"]["reused"] == 0
    assert summary_of("loud")["models"] == {"vlm": "swatches/palette palette args.shout=true"}
    capsys.readouterr()
    assert plugged("compare", "out", "loud") == 0
    assert "the lowest of excess." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("engine.name=swatches/pallete", "no such engine; did you mean 'swatches/palette'?"),
        (
            "data.source=swatches/colors",
            "unknown data source 'swatches/colors'; did you mean 'swatches/colours'",
        ),
        ("write.format=[swatches/cvs]", "swatches/cvs: invalid value; did you mean 'swatches/csv'?"),
        ("pipeline.steps.final_caption.stage=swatches/first", "unknown stage 'swatches/first'"),
        ("data.args.colours=[mauve]", "data.args.colours: expected some of red, green, blue, got mauve"),
        ("data=scenes data.args.colours=[red]", "data.args.colours is for sources of other packages"),
    ],
)
def test_an_unknown_name_is_refused_before_a_model_loads(plugged: Command, capsys, words: str, message: str):
    assert plugged("check", *WORDS, *words.split()) == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_check_says_what_it_cannot_know(plugged: Command, capsys):
    assert plugged("check", *WORDS) == 0
    assert "Not checked: that swatches/palette can run palette" in capsys.readouterr().out
