"""Runs that stop early: failures, unanswered checks, a dead engine, signals."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import Answer, Compose, Engines, Rows, captions, first_words, interrupt, roles

from scalecap.engines.base import Choose, Chosen, EngineDead, Generate, Request
from scalecap.runner import run


@pytest.mark.parametrize(
    ("unread", "least", "rows"),
    [("There is", 0.1, 25), ("There is", 0.0, 40), ("brown", 0.1, 40), ("nothing", 0.1, 40)],
)
def test_a_run_whose_checks_are_mostly_unanswered_stops(
    answer: Answer, compose: Compose, tmp_path: Path, unread: str, least: float, rows: int
):
    """A row has two checks of sentences, and two of answers where a sentence is kept."""

    def says(request: Request) -> Any:
        if isinstance(request, Choose) and unread in request.prompt.text:
            return Chosen((0.9, 0.1), mass=0.02)
        return answer(request)

    words = ("data.count=40", "rows_in_flight=1", f"min_mass={least}")
    summary = run(compose(*words), engines=roles(says), command="python -m scalecap")
    assert (summary.done, summary.status) == (rows, "finished" if rows == 40 else "stopped")
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    first, second = (written["choices"].get(step) for step in ("golden_sentences", "final_details"))
    screen = summary.screen()
    if rows == 25:
        assert summary.exit_code == 1
        assert first == {"total": 50, "unanswered": 50, "median_mass": 0.02}
        assert second is None  # nothing was kept, so nothing was checked
        assert "golden_sentences: 50 of its first 50 checks are unanswered" in screen
        assert "model.vlm.chat_template_kwargs.enable_thinking=false" in screen
        assert "golden_sentences: 0 kept, 50 dropped, 50 of them unanswered (median mass 0.02)" in screen
        assert screen.endswith(
            "Next: change a setting as said above; the same command would send 50 more checks and stop again."
        )
        assert all(row["golden_sentences_scores"][0]["p_yes"] is None for row in captions())
        again = run(compose(*words), engines=roles(answer))
        assert (again.status, again.done, again.reused) == ("finished", 40, 25)
    elif unread == "brown":  # half of a step's checks are not most of them
        assert second == {"total": 80, "unanswered": 40, "median_mass": 0.02}
    elif least:
        assert first == {"total": 80, "unanswered": 0, "median_mass": 1.0}


def test_a_run_whose_sampled_checks_are_mostly_unanswered_stops(answer: Answer, compose: Compose):
    """The prompt is in another language, and so are the replies."""

    def says(request: Request) -> Any:
        return "Ja." if "Stimmt" in request.prompt.text else answer(request)

    step = "pipeline.steps.golden_sentences"
    words = ("data.count=40", "rows_in_flight=1", f"{step}.mode=sampled")
    prompts = (f"{step}.prompt='Stimmt das: {{{{ text }}}}'", f"+{step}.ensemble=['Stimmt {{{{ text }}}}?']")
    summary = run(compose(*words, *prompts), engines=roles(says))
    assert (summary.done, summary.status) == (13, "stopped")
    assert "52 of its first 52 checks are unanswered: the replies begin with neither" in summary.screen()


def test_when_every_row_fails_the_run_stops_early(
    compose: Compose, engines: Engines, tmp_path: Path, rows: Rows
):
    settings = compose("data=jsonl", rows(60, broken=tuple(range(60))), "rows_in_flight=4")
    summary = run(settings, engines=engines, command="python -m scalecap x max_failures=100%")
    assert (summary.exit_code, summary.status) == (1, "stopped")
    assert 20 <= summary.failed <= 24
    assert "20 of the first 20 rows failed (max_failures=100%)" in summary.screen()
    assert summary.screen().endswith(
        "Next: fix the errors above and run the same command, which retries failed rows; or ignore"
        f" failures:\n  python -m scalecap x output={tmp_path}/run max_failures=null"
    )
    assert len(captions()) == summary.failed


@pytest.mark.parametrize(
    ("most", "broken", "reason"),
    [
        ("1", (3,), "1 of the first 4 rows failed (max_failures=1)"),
        ("2", (3, 30), "2 of the first 31 rows failed (max_failures=2)"),
        ("10%", (0, 1), "2 of the first 20 rows failed (max_failures=10%)"),
        ("51%", (*range(10), *range(31, 40)), None),
        ("3", (3, 30), None),
        ("null", range(40), None),
    ],
)
def test_too_many_failures_stop_the_run(
    compose: Compose,
    engines: Engines,
    rows: Rows,
    most: str,
    broken: tuple[int, ...],
    reason: str | None,
):
    settings = compose(
        "data=jsonl", rows(40, broken=tuple(broken)), "rows_in_flight=1", f"max_failures={most}"
    )
    summary = run(settings, engines=engines)
    if reason is None:
        assert (summary.status, summary.failed, len(captions())) == ("finished", len(broken), 40)
    else:
        assert (summary.status, summary.reason, summary.exit_code) == ("stopped", reason, 1)
        assert len(captions()) < 40
        settings.max_failures = None
        assert run(settings, engines=engines).done == 40 - len(broken)


def test_a_dead_engine_keeps_what_was_finished(answer: Answer, compose: Compose):
    captioned = 0

    def dies(request: Request) -> str | float:
        nonlocal captioned
        captioned += first_words(request) == "Describe the picture."
        if captioned > 2:
            raise EngineDead("out of memory")
        return answer(request)

    summary = run(compose("data.limit=5", "rows_in_flight=1", "cache=off"), engines=roles(dies))
    assert (summary.exit_code, summary.done, summary.reason) == (1, 2, "out of memory")
    assert len(captions()) == 2
    assert run(compose("data.limit=5"), engines=roles(answer)).reused == 2


@pytest.mark.parametrize("each", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_rows_in_flight(
    answer: Answer, compose: Compose, caplog: pytest.LogCaptureFixture, each: signal.Signals
):
    captioned = 0

    async def interrupts(request: Request) -> str | float:
        nonlocal captioned
        if isinstance(request, Generate) and first_words(request) == "Describe the picture.":
            captioned += 1
            if captioned == 3:
                await interrupt(caplog, each)
        return answer(request)

    settings = compose("rows_in_flight=1", "cache=off")
    summary = run(settings, engines=roles(interrupts))
    assert (summary.exit_code, summary.status) == (130, "interrupted")
    assert summary.done == len(captions()) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(compose(), engines=roles(answer)).reused == 3


def test_a_second_signal_stops_at_once(compose: Compose, caplog: pytest.LogCaptureFixture):
    begun = 0

    async def hangs(request: Request) -> str:
        nonlocal begun
        begun += 1
        if begun == 2:
            await interrupt(caplog)
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        return ""

    summary = run(compose("rows_in_flight=2"), engines=roles(hangs))
    assert (summary.exit_code, summary.done, summary.failed) == (130, 0, 0)
    assert captions() == []
