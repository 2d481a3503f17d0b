"""Whether promises hold on the embedded world: the table and the plot."""

import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason='needs pip install "scalecap[dev]"')

from scalecap.calibration.calibrate import DEFAULT_PROMISES
from scalecap.calibration.statistics import THRESHOLDS
from scalecap.scenes.experiments.promise import CHECKS, LABELS, World, lines, main, rates, world, write

RESULTS = Path(main.__code__.co_filename).parents[1] / "results" / "promise.md"
DOG = {"kind": "dog", "count": 1, "size": "small", "colour": "brown", "facing": "left", "place": "at the top"}
TRUTH = {"ground": "sand", "things": [DOG | {"next_to": [], "parts": []}]}


def rows(count: int) -> list[dict]:
    """Scenes with one true and one wrong sentence, which the check separates better from scene to scene."""
    found = []
    for number in range(count):
        p_yes = 0.5 + 0.4 * number / count
        scores = [
            {"text": "There is a dog.", "p_yes": p_yes},
            {"text": "There is a cat.", "p_yes": 1 - p_yes},
            {"text": "Mumble.", "p_yes": None},
        ]
        found.append({"truth": TRUTH} | {f"{check}_scores": scores for check in CHECKS})
    return [*found, {"truth": TRUTH} | {f"{check}_scores": [] for check in CHECKS}]


def test_truth_is_read_from_the_scene():
    made = world(rows(2), "final_details")
    assert [each.tolist() for each in made.true] == [[True, False, False]] * 2
    assert made.p_yes[0].tolist() == [0.5, 0.5, -1.0]


def test_every_image_counts_the_same_in_what_is_promised():
    few = (np.array([0.9]), np.array([False]))
    many = (np.full(9, 0.9), np.ones(9, bool))
    known = rates(World([few[0], many[0]], [few[1], many[1]]))
    at = int(np.argmin(np.abs(THRESHOLDS - 0.5)))
    assert (known.wrong[at], known.pooled[at], known.true_kept[at]) == (0.5, 0.1, 1.0)
    assert math.isnan(known.wrong[0])  # nothing is kept


def test_promises_are_counted_over_draws():
    found = list(lines("final_details", world(rows(300), "final_details"), draws=50))
    assert [(line.labels, line.wrong) for line in found] == [(n, w) for n in LABELS for w in DEFAULT_PROMISES]
    assert all(line.broken <= 0.1 for line in found)
    last = found[-1]
    assert (last.labels, last.wrong, last.found) == (400, 0.2, 1.0)
    assert last.true_kept <= last.possible


def test_the_page_and_the_plot(tmp_path: Path):
    write(rows(40), tmp_path, count=40, seed=1, draws=5)
    text = (tmp_path / "promise.md").read_text()
    assert "python -m scalecap.scenes.experiments.promise DIR --count 40 --seed 1 --draws 5" in text
    assert (
        sum(line.startswith("| details |") for line in text.splitlines())
        == len(LABELS) * len(DEFAULT_PROMISES) + 1
    )
    assert ElementTree.parse(tmp_path / "promise.svg").getroot().tag.endswith("svg")


def test_the_promises_in_the_docs_were_kept():
    text = RESULTS.read_text(encoding="utf-8")
    assert "python -m scalecap.scenes.experiments.promise DIR --count 1000" in text
    table = [line.split("|") for line in text.splitlines() if line.startswith("| ") and line.count("|") == 10]
    rows = [[cell.strip() for cell in cells[1:-1]] for cells in table if cells[2].strip()[:1].isdigit()]
    assert {row[0] for row in rows} == set(CHECKS.values())
    assert len(rows) == len(CHECKS) * len(LABELS) * len(DEFAULT_PROMISES)
    assert all(float(row[4].rstrip("%")) <= 5 + 2.1 for row in rows)  # three standard errors of 1,000 draws


@pytest.mark.slow
def test_one_command_makes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["promise", str(tmp_path), "--count", "4", "--draws", "2"])
    main()
    assert (tmp_path / "promise.md").exists()
    assert (tmp_path / "promise.svg").exists()
