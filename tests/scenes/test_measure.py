import json
import subprocess
import sys

import pytest

from scalecap.scenes.measure import by_sort, judge, table

TRUTH = {
    "ground": "grass",
    "things": [
        {
            "kind": "dog",
            "count": 1,
            "size": "small",
            "place": "on the left",
            "facing": "left",
            "next_to": ["tree"],
            "colour": "brown",
            "parts": ["a curled tail", "hanging ears"],
        },
        {
            "kind": "tree",
            "count": 2,
            "size": None,
            "place": "in the center",
            "facing": None,
            "next_to": ["dog"],
            "colour": "green",
            "parts": [],
        },
    ],
}


@pytest.mark.parametrize(
    ("caption", "true", "wrong", "unread"),
    [
        ("", 0, 0, 0),
        ("There is a dog.", 1, 0, 0),
        ("There is a dog. There is a dog.", 1, 0, 0),
        ("There are three trees in the center.", 2, 1, 0),
        ("There is a large dog on the right.", 1, 2, 0),
        ("The scene is on grass. The scene is on snow.", 1, 1, 0),
        ("The dog is next to the tree.", 2, 0, 0),
        ("There is a small cat.", 0, 2, 0),
        ("There is a tree.", 1, 1, 0),
        ("Lorem ipsum.", 0, 0, 1),
    ],
)
def test_facts_are_counted_once_each(caption: str, true: int, wrong: int, unread: int):
    told = judge(caption, TRUTH)
    assert (told.true, told.wrong, told.unread) == (true, wrong, unread)


ROWS = [
    {
        "truth": TRUTH,
        "init_caption": "There is a small dog. There is a cat.",
        "golden": ["There is a small dog."],
    },
    {"truth": TRUTH, "init_caption": "There is a large dog.", "golden": []},
    {"truth": TRUTH, "init_caption": None, "golden": None, "error": {"step": "init_caption"}},
]


def test_table_leaves_failed_rows_out():
    found = table(ROWS, ["init_caption", "golden", "absent"])
    assert list(found) == ["init_caption", "golden"]
    init = found["init_caption"]
    assert (init["captions"], init["true"], init["wrong"]) == (2, 1.5, 1.0)
    assert init["wrong share"] == pytest.approx(2 / 5)
    assert found["golden"]["wrong share"] == 0
    assert by_sort(ROWS, "init_caption")["size"] == (1, 1)


def test_the_command_reads_a_run(tmp_path):
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "scalecap.scenes.measure", str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "init_caption" in out
    assert "40.0%" in out
