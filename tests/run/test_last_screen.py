"""`summary.json` and the last screen: counts, notes, metrics and the command that resumes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from runs import Answer, Compose, Engines, Rows, captions, roles

from scalecap.engines.base import Choose, Chosen, Generated, Request, Usage
from scalecap.run.summary import Summary
from scalecap.runner import run


def test_the_summary_counts_what_was_done(compose: Compose, engines: Engines, tmp_path: Path):
    summary = run(compose("data.limit=2"), engines=engines, command="python -m scalecap data.limit=2")
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["status"] == "finished"
    assert written["rows"] == {"done": 2, "failed": 0, "reused": 0, "left_out": None}
    assert written["checks"]["golden_sentences"] == {"kept": 2, "dropped": 2}
    assert written["checks"]["final_details"] == {"kept": 4, "dropped": 0}
    assert written["choices"]["final_details"] == {"total": 4, "unanswered": 0, "median_mass": 1.0}
    # per row: 1 caption, 2 checks, 1 for questions, 2 answers, 2 checks, 1 fusion
    assert written["requests"]["total"] == 18
    assert written["requests"]["reused"] == 2  # prompts without an image are the same for both rows
    assert written["steps"]["golden_sentences"]["requests"] == 4
    assert written["tokens"]["generated"] > 0
    assert written["models"] == {"vlm": "scripted", "llm": "scripted"}
    assert set(written["seconds"]) == {"check", "load", "rows", "write"}
    assert written["command"] == "python -m scalecap data.limit=2"
    assert "python" in written["versions"]
    screen = summary.screen()
    assert "2 rows captioned" in screen
    assert "golden_sentences: 2 kept, 2 dropped" in screen
    assert not any(word in screen for word in ("mass", "cached", "prefix cache"))  # nothing to report
    assert str(tmp_path / "run" / "captions.jsonl") in screen


@pytest.mark.parametrize(("cached", "shown", "noted"), [(0, "golden_sentences 0%", True), (9, "90%", False)])
def test_the_share_of_the_prefix_cache_is_shown(
    answer: Answer, compose: Compose, tmp_path: Path, cached: int, shown: str, noted: bool
):
    def says(request: Request) -> Any:
        said, usage = answer(request), Usage(10, cached if request.prompt.image else 0, 1)
        if isinstance(request, Choose):
            return Chosen((said, 1 - said), usage=usage)
        return Generated(said, "stop", usage)

    summary = run(compose("data.count=12"), engines=roles(says), command="python -m scalecap")
    screen = summary.screen()
    assert "prompt tokens from the prefix cache: golden_sentences" in screen
    assert shown in screen
    assert ("hardly ever reused" in screen) is noted
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["steps"]["golden_sentences"]["cached_share"] == cached / 10
    assert written["steps"]["raw_questions"]["cached_share"] == 0
    assert len([note for note in written["notes"] if "enable_prefix_caching" in note]) == noted


@pytest.mark.parametrize(
    ("condition", "note"),
    [
        ("golden_sentences", "final_caption: `when: golden_sentences` held for all 2 rows."),
        ("not golden_sentences", "final_caption: `when: not golden_sentences` held for none of 2 rows."),
        ("id == 1", None),
    ],
)
def test_a_condition_that_held_for_all_rows_or_none_is_noted(
    compose: Compose, engines: Engines, rows: Rows, condition: str, note: str | None
):
    step = f"+pipeline.steps.final_caption.when='{condition}'"
    summary = run(compose("data=jsonl", rows(2), step), engines=engines)
    assert [each for each in summary.notes if "when" in each] == ([note] if note else [])
    skipped = {"golden_sentences": 0, "not golden_sentences": 2, "id == 1": 1}[condition]
    assert summary.flags == ({"final_caption": {"skipped": skipped}} if skipped else {})


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("python -m scalecap", "python -m scalecap 'output=\"/runs/a b\"'"),
        ("python -m scalecap output=here", "python -m scalecap output=here"),
        ("python -m scalecap -m seed=1,2", "python -m scalecap -m seed=1,2 hydra.sweep.dir=/runs"),
        ("python -m scalecap -m hydra.sweep.dir=s", "python -m scalecap -m hydra.sweep.dir=s"),
    ],
)
def test_the_resume_command_names_the_folder(typed: str, shown: str):
    assert Summary(Path("/runs/a b"), typed).resume == shown


def test_columns_of_numbers_are_averaged(
    compose: Compose, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "counting.py").write_text(
        "from scalecap.stages import Measures, stage\n\n\n"
        "@stage\ndef length(texts: list[str]) -> int:\n    return len(texts)\n\n\n"
        "@stage\ndef share(texts: list[str]) -> Measures:\n"
        "    dogs = sum('dog' in text for text in texts)\n"
        "    return {'dogs': {'count': dogs, 'of': len(texts)}, 'none': None}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = compose(
        "data.limit=4",
        "pipeline.imports=[counting]",
        "+pipeline.steps.counted={stage: counting/length, texts: sentences}",
        "+pipeline.steps.true={stage: counting/share, texts: sentences}",
    )
    summary = run(settings, engines=engines)
    written = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert written == {
        "counted": {"mean": 2.0, "low": 2.0, "high": 2.0, "rows": 4},
        "true.dogs": {"mean": 0.5, "low": 0.5, "high": 0.5, "rows": 4},
    }
    screen = summary.screen()
    assert re.search(r"^  counted +2 \(2 to 2\)$", screen, re.M)
    assert re.search(r"^  true\n    dogs +0.5 \(0.5 to 0.5\)$", screen, re.M)
    assert captions()[0]["true"] == {"dogs": {"count": 1, "of": 2}, "none": None}
