"""The table and the plot of the paper's method on the embedded world."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
pytest.importorskip("matplotlib", reason='needs pip install "scalecap[dev]"')

from scalecap.scenes.experiments.method import BUDGETS, area, main, variants

RESULTS = Path(main.__code__.co_filename).parents[1] / "results" / "README.md"


def test_area_is_the_share_of_pairs_in_order():
    assert area([2.0, 3.0], [1.0, 2.0]) == 0.875
    assert area([1.0], [1.0]) == 0.5


@pytest.mark.slow
def test_one_command_makes_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["method", str(tmp_path), "--count", "2"])
    main()
    table = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| ")]
    assert len(variants()) == 8 + len(BUDGETS)
    # none, seed, and three captions of each other pipeline; five ratings; two heads
    assert len(table) == 2 + 3 * (len(variants()) - 1) + 5 + 4
    shown = ElementTree.parse(tmp_path / "budget.svg").getroot()
    assert shown.tag.endswith("svg")
    # Each budget spends more than the one before it.
    cost = {
        line.split("|")[1].strip(): float(line.split("|")[6]) for line in table if "| assembled |" in line
    }
    spent = [cost[f"contrast then verify, budget {budget}"] for budget in (0, 1, 2)]
    assert spent[0] < spent[1] < spent[2]


def test_the_results_in_the_docs_are_of_the_pipelines_there_are():
    text = RESULTS.read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for name in variants())
    assert "python -m scalecap.scenes.experiments.method DIR --count" in text
