"""An edited column replaces what its step wrote, and the run continues from there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import an_image
from runs import Compose, Rows, captions, roles

from scalecap.engines.base import Request
from scalecap.engines.scripted import Scripted
from scalecap.runner import RunError, plan, run


@pytest.fixture
def words(rows: Rows, tmp_path: Path) -> list[str]:
    own = ["model=own", "model.vlm.name=m", "pipeline=seed", "progress=false", f"cache.dir={tmp_path}/cache"]
    return ["data=jsonl", rows(3), *own]


@pytest.fixture
def requests(answer: Callable[[Request], Any]) -> tuple[list[str], dict[str, Scripted]]:
    """Prompts that reach the model, and the model."""
    texts: list[str] = []

    def script(request: Request) -> Any:
        texts.append(request.prompt.text)
        return answer(request)

    return texts, roles(script)


def test_only_what_depends_on_an_edit_is_computed_again(
    compose: Compose, words: list[str], requests: tuple[list[str], dict[str, Scripted]], tmp_path: Path
):
    texts, engines = requests
    first = run(compose(*words), engines=engines)
    before = captions(first.output)
    texts.clear()
    file = tmp_path / "home" / "edits.jsonl"
    file.parent.mkdir()
    file.write_text(
        json.dumps({"row_id": "1", "golden_sentences": ["A dog sleeps."]}) + "\n",
        encoding="utf-8-sig",  # as editors on Windows write it
    )
    again = run(compose(*words, "edits='~/edits.jsonl'"), engines=engines)
    after = captions(again.output)
    assert (again.done, again.reused) == (3, 2)
    assert after[0] == before[0]
    assert after[2] == before[2]
    assert after[1]["golden_sentences"] == ["A dog sleeps."]
    assert after[1]["golden_sentences_scores"] == before[1]["golden_sentences_scores"]
    assert after[1]["flags"]["golden_sentences"] == ["edited"]
    assert texts  # the questions and the caption read the edited column
    assert all("A dog sleeps." in text for text in texts)
    texts.clear()
    once_more = run(compose(*words, f"edits={file}"), engines=engines)
    assert (once_more.reused, texts) == (3, [])


def test_an_edit_applies_only_while_its_file_is_given(
    compose: Compose, words: list[str], requests: tuple[list[str], dict[str, Scripted]], tmp_path: Path
):
    texts, engines = requests
    (tmp_path / "edits.jsonl").write_text('{"row_id": "0", "final_caption": "By hand."}\n')
    run(compose(*words, f"edits={tmp_path}/edits.jsonl"), engines=engines)
    texts.clear()
    plain = run(compose(*words), engines=engines)
    assert (plain.done, plain.reused) == (3, 2)
    assert captions(plain.output)[0]["final_caption"] != "By hand."
    assert len(texts) <= 1  # of the step that the edit had replaced


def test_an_edit_that_is_taken_back_is_redone_in_a_finished_part_too(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    pq.write_table(pa.table({"image": [an_image((each, 0, 0)) for each in range(2)]}), tmp_path / "x.parquet")
    words = ["data=parquet", f"data.path={tmp_path}/x.parquet", "model=own", "model.vlm.name=m"]
    words += ["pipeline=seed", "progress=false", "cache=off"]
    edits = tmp_path / "edits.jsonl"
    edits.write_text(json.dumps({"row_id": f"{tmp_path}/x.parquet#0", "final_caption": "By hand."}))
    edited = run(compose(*words, f"edits={edits}"), engines=engines)
    assert captions(edited.output)[0]["final_caption"] == "By hand."
    plain = run(compose(*words), engines=engines)
    assert (plain.done, plain.reused) == (2, 1)
    assert captions(plain.output)[0]["final_caption"] != "By hand."


def test_an_edit_of_an_absent_row_is_noted(
    compose: Compose, words: list[str], engines: dict[str, Scripted], tmp_path: Path
):
    (tmp_path / "edits.jsonl").write_text('{"row_id": "7", "final_caption": "x"}\n')
    done = run(compose(*words, f"edits={tmp_path}/edits.jsonl"), engines=engines)
    assert "Rows of edits that are not in the data (1): '7'." in done.notes


@pytest.mark.parametrize(
    ("text", "written"), [('"a\u2028b\x85c"', "a\u2028b\x85c"), ('"a \\ud800"', "a ?"), ("null", None)]
)
def test_an_edit_of_any_json_text_is_read_and_not_redone(
    compose: Compose, words: list[str], engines: dict[str, Scripted], tmp_path: Path, text: str, written: Any
):
    (tmp_path / "edits.jsonl").write_text(f'{{"row_id": "0", "final_caption": {text}}}\n', encoding="utf-8")
    for reused in (0, 3):
        done = run(compose(*words, f"edits={tmp_path}/edits.jsonl"), engines=engines)
        assert done.reused == reused
    assert captions()[0]["final_caption"] == written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"final_caption": "x"}', "line 1: expected an object with row_id"),
        ('{"row_id": "0"}', "line 1: expected an object with row_id"),
        ('{"row_id": "0", "final_captoin": "x"}', "no step writes a column 'final_captoin'.*final_caption"),
        ('{"row_id": "0", "golden_sentences": "x"}', "golden_sentences: expected a list of texts, got 'x'"),
        ('{"row_id": "0", "golden_sentences": [1]}', "golden_sentences: expected a list of texts"),
        (
            '{"row_id": "0", "final_caption": "x"}\n{"row_id": "0", "final_caption": "y"}',
            "line 2: .*is repeated",
        ),
    ],
)
def test_a_bad_file_is_refused_before_a_model_loads(
    line: str, message: str, compose: Compose, words: list[str], tmp_path: Path
):
    (tmp_path / "edits.jsonl").write_text(line)
    settings = compose(*words, f"edits={tmp_path}/edits.jsonl")
    for check in (plan, run):
        with pytest.raises(RunError, match=message):
            check(settings)


def test_a_missing_file_is_named(compose: Compose, words: list[str], tmp_path: Path):
    with pytest.raises(RunError, match=r"absent\.jsonl can.t be read"):
        run(compose(*words, f"edits={tmp_path}/absent.jsonl"))
