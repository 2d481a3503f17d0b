"""Captions in columns of any name are in every table: the screen, the summary, the comparison, the card."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from runs import Compose

from scalecap.report.card import card
from scalecap.report.comparison import Comparison
from scalecap.report.comparison_page import page
from scalecap.report.page import templates
from scalecap.report.row import row_view
from scalecap.report.run_page import index
from scalecap.run.folder import Run, read_runs
from scalecap.runner import RunError, run

MODELS = ["gpt-4.1", "qwen2.5-vl"]
ODD = [
    "a.b.c.d",
    "a b",
    "1",
    "count",
    "of",
    "цвет.1",
    "x|y",
    "<b>",
    'say "so"',
    "\\",
    "a\\.b",
    ".",
    "a.",
    "__proto__",
]


def captioned(compose: Compose, folder: Path, names: list[str], output: str, words: str = "dog") -> Run:
    """A finished run that scored captions of these columns, each with a different number of words."""
    rows = [
        {"image": f"{row}.png"} | {name: f"{words} " * (at + row + 1) for at, name in enumerate(names)}
        for row in range(2)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = compose(
        *("pipeline=none", "data=jsonl", f"data.path={folder}/rows.jsonl", "evaluate=density"),
        *("evaluate.caption=x", f"output={folder / output}", "report=false"),
    )
    settings.pipeline.steps["density"]["captions"] = names
    summary = run(settings, engines={})
    summary.write()
    return Run(folder / output, output)


def breakable(name: str) -> str:
    return str(templates().from_string("{{ name|breakable }}").render(name=name))


@pytest.mark.parametrize("names", [MODELS, ODD, ["count", "of"]], ids=["models", "odd", "as a share"])
def test_no_column_vanishes(compose: Compose, tmp_path: Path, names: list[str]):
    first = captioned(compose, tmp_path, names, "first")
    second = captioned(compose, tmp_path, names, "second", words="a dog")
    heads = [f"density.{name}.words" for name in names]

    compared = Comparison([first, second])
    (tmp_path / "compared").mkdir()
    compared.save(tmp_path / "compared")
    table = list(csv.DictReader((tmp_path / "compared" / "comparison.csv").open(newline="")))
    for at, head in enumerate(heads):
        assert float(table[0][head]) == at + 1.5
        assert float(table[1][f"{head} difference"]) == at + 1.5  # two words in place of one
    assert "comparison.csv" not in "".join(compared.notes)  # no number is only in the CSV
    titles = compared.markdown().splitlines()[2].replace("\\|", "¦").replace("\\", "").split(" | ")
    assert [each for each in titles if each.endswith(".words")] == [
        head.replace("|", "¦").replace("\\", "") for head in heads
    ]
    cells = re.findall(r'<th scope="col">(.*?)</th>', page(compared, tmp_path))
    assert [each for each in cells if each.startswith("density") and each.endswith("words")] == [
        breakable(head) for head in heads
    ]

    row = next(first.rows())
    shown = row_view(first, row)
    assert [name for name, _ in shown["numbers"] if name.endswith(".words")] == heads
    assert "density" not in [column for column, _ in shown["other"]]
    assert [name for name in index(first, [row])["numbers"] if name.endswith(".words")] == heads

    written = str(card(first, "me/dogs", "unknown", pa.schema([])))
    for head in heads:
        name = re.escape(head.replace("|", "\\|"))
        assert re.search(rf"^\| `+ ?{name} ?`+ \| \S+ \|", written, re.M), head


def test_the_screen_has_a_column_for_each_model(compose: Compose, tmp_path: Path, typed: Any, capsys: Any):
    captioned(compose, tmp_path, MODELS, "first")
    words = ("pipeline=none", "data=jsonl", f"data.path={tmp_path}/rows.jsonl", "output=typed")
    assert typed(*words, "evaluate=density", "evaluate.caption=[gpt-4.1,qwen2.5-vl]") == 0
    screen = capsys.readouterr().out
    assert re.search(r"^  density +gpt-4\.1 +qwen2\.5-vl$", screen, re.M)
    assert re.search(r"^    words +1\.5 \(.*\) +2\.5 \(", screen, re.M)


@pytest.mark.parametrize("objective", ["density.gpt-4.1.words", r"density.gpt-4\.1.words"])
def test_an_objective_names_it_with_or_without_the_escape(compose: Compose, tmp_path: Path, objective: str):
    runs = [captioned(compose, tmp_path, MODELS, "one"), captioned(compose, tmp_path, MODELS, "two", "a dog")]
    compared = Comparison(runs, objective=f"-{objective}")
    assert [line.numbers[compared.names[0]].best for line in compared.lines] == [True, False]
    words = ("pipeline=none", "data=jsonl", f"data.path={tmp_path}/rows.jsonl")
    settings = compose(*words, "evaluate=density", "evaluate.caption=x")
    settings.pipeline.steps["density"]["captions"] = MODELS
    settings.objective = f"-{objective}"
    assert run(settings, engines={}).value(settings.objective) == -3
    settings.objective = "dnsity.gpt-4.1.words"
    with pytest.raises(RunError, match="no step dnsity writes numbers; did you mean 'density'"):
        run(settings, engines={})


def test_an_older_folder_is_still_read(compose: Compose, tmp_path: Path):
    """Names were not escaped: numbers are computed again from the rows, those over all rows are kept."""
    folder = captioned(compose, tmp_path, ["final_caption"], "first").folder
    summary = json.loads((folder / "summary.json").read_text())
    summary["metrics"]["density.gpt-4.1.cider"] = {"mean": 1.0, "low": 0.5, "high": 1.5, "rows": 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    (found,) = Comparison(read_runs([folder])).lines
    assert found.numbers["density.gpt-4.1.cider"].value.mean == 1.0
    assert found.numbers["density.final_caption.words"].value.mean == 1.5
