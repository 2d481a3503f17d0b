"""Whole runs of the real configs on the scripted engine."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from PIL import Image as Pillow

from scalecap import engines as opening
from scalecap.config.settings import Settings
from scalecap.engines.base import Choose, Chosen, EngineDead, EngineError, Generate, Generated, Request, Usage
from scalecap.engines.scripted import Scripted
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.interpreter.dispatch import RunUsage
from scalecap.run import progress
from scalecap.run.summary import Summary
from scalecap.runner import RunError, plan, run

Compose = Callable[..., Settings]
Engines = dict[str, Scripted]
Answer = Callable[[Request], str | float]


def captions(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "captions.jsonl").read_text().splitlines()]


def both(engine: Scripted) -> Engines:
    return {"vlm": engine, "llm": engine}


def first_words(request: Request) -> str:
    return request.prompt.text.splitlines()[0]


@pytest.mark.parametrize("pipeline", ["default", "seed"])
def test_every_column_of_the_seed_is_written(
    compose: Compose, engines: Engines, tmp_path: Path, pipeline: str
):
    summary = run(
        compose("data.limit=3", f"pipeline={pipeline}"), engines=engines, command="python -m scalecap"
    )
    assert (summary.exit_code, summary.done, summary.failed) == (0, 3, 0)
    row = captions(tmp_path)[0]
    assert list(row) == [
        *("row_id", "image", "truth", "init_caption", "sentences"),
        *("golden_sentences", "golden_sentences_scores", "golden_sentences_refuted"),
        *("raw_questions", "q_list", "raw_answers"),
        *("final_details", "final_details_scores", "final_details_refuted", "final_caption"),
        *("flags", "error"),
    ]
    assert row["init_caption"] == "There is a dog. There is a cat."
    assert row["golden_sentences"] == ["There is a dog."]
    cat = {"text": "There is a cat.", "p_yes": 0.1, "kept": False, "mass": 1.0}
    assert row["golden_sentences_scores"][1] == cat
    assert row["raw_answers"] == ["The dog is brown.", "The dog is at the left."]
    assert row["final_caption"] == "A dog, brown."
    loaded = datasets.load_dataset(str(tmp_path / "run" / "dataset"), split="train", cache_dir=str(tmp_path))
    assert loaded[0]["golden_sentences_scores"] == row["golden_sentences_scores"]


def test_the_seeds_sampled_checks_read_the_first_word(compose: Compose, engines: Engines, tmp_path: Path):
    sampled = [f"pipeline.steps.{step}.mode=sampled" for step in ("golden_sentences", "final_details")]
    run(compose("data.limit=1", "pipeline=seed", "prompts=seed", *sampled), engines=engines)
    row = captions(tmp_path)[0]
    assert row["golden_sentences"] == ["There is a dog."]
    assert row["golden_sentences_scores"][0] == {
        "text": "There is a dog.",
        "p_yes": None,
        "kept": True,
        "mass": None,
    }


def test_the_summary_tells_what_was_done(compose: Compose, engines: Engines, tmp_path: Path):
    summary = run(compose("data.limit=2"), engines=engines, command="python -m scalecap data.limit=2")
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["status"] == "finished"
    assert written["rows"] == {"done": 2, "failed": 0, "reused": 0, "left_out": None}
    assert written["checks"]["golden_sentences"] == {"kept": 2, "dropped": 2}
    assert written["checks"]["final_details"] == {"kept": 4, "dropped": 0}
    assert written["choices"]["final_details"] == {"asked": 4, "unanswered": 0, "median_mass": 1.0}
    # a row: 1 caption, 2 checks, 1 for questions, 2 answers, 2 checks, 1 fusion
    assert written["requests"]["asked"] == 18
    assert written["requests"]["reused"] == 2  # texts alone are the same for both rows
    assert written["steps"]["golden_sentences"]["requests"] == 4
    assert written["tokens"]["generated"] > 0
    assert written["models"] == {"vlm": "scripted", "llm": "scripted"}
    assert set(written["seconds"]) == {"check", "load", "rows", "write"}
    assert written["command"] == "python -m scalecap data.limit=2"
    assert "python" in written["versions"]
    screen = summary.screen()
    assert "2 rows captioned" in screen
    assert "golden_sentences: 2 kept, 2 dropped" in screen
    assert not any(word in screen for word in ("mass", "cached", "prefix cache"))  # it tells nothing of these
    assert str(tmp_path / "run" / "captions.jsonl") in screen


def test_rows_that_fail_are_written_and_tried_again(
    answer: Answer, compose: Compose, engines: Engines, tmp_path: Path, rows: Callable[..., str]
):
    settings = compose("data=jsonl", rows(4, broken=(1,)))
    summary = run(settings, engines=engines, command="python -m scalecap data=jsonl")
    assert (summary.exit_code, summary.done, summary.failed) == (3, 3, 1)
    written = captions(tmp_path)
    assert [row["id"] for row in written] == [0, 1, 2, 3]
    assert written[1]["error"]["step"] == "image"
    assert written[1]["final_caption"] is None
    assert f"python -m scalecap data=jsonl output={tmp_path}/run" in summary.screen()

    Pillow.new("RGB", (30, 30)).save(tmp_path / "1.png")
    calls: list[Request] = []
    counting = both(Scripted(lambda request: calls.append(request) or answer(request)))
    again = run(compose("data=jsonl", f"data.path={tmp_path}/rows.jsonl", "cache=off"), engines=counting)
    assert (again.exit_code, again.done, again.reused) == (0, 4, 3)
    assert [row["error"] for row in captions(tmp_path)] == [None] * 4
    assert sum(first_words(call) == "Describe the picture." for call in calls) == 1


def test_a_finished_run_opens_no_engine(compose: Compose, engines: Engines, tmp_path: Path):
    run(compose("data.limit=2"), engines=engines)
    before = captions(tmp_path)
    summary = run(compose("data.limit=2", "model.vlm.name=scenes"))  # the real engine would be opened
    assert (summary.exit_code, summary.done, summary.reused) == (0, 2, 2)
    assert captions(tmp_path) == before


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
    summary = run(compose(*words), engines=both(Scripted(says)), command="python -m scalecap")
    assert (summary.done, summary.status) == (rows, "finished" if rows == 40 else "stopped")
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    first, second = (written["choices"].get(step) for step in ("golden_sentences", "final_details"))
    screen = summary.screen()
    if rows == 25:
        assert summary.exit_code == 1
        assert first == {"asked": 50, "unanswered": 50, "median_mass": 0.02}
        assert second is None  # nothing was kept, so nothing was asked about
        assert "golden_sentences: 50 of its first 50 checks are unanswered" in screen
        assert "model.vlm.chat_template_kwargs.enable_thinking=false" in screen
        assert "golden_sentences: 0 kept, 50 dropped, 50 of them unanswered (median mass 0.02)" in screen
        assert screen.endswith(
            "Next: change a setting as said above; the same command would send 50 more checks and stop again."
        )
        assert all(row["golden_sentences_scores"][0]["p_yes"] is None for row in captions(tmp_path))
        again = run(compose(*words), engines=both(Scripted(answer)))
        assert (again.status, again.done, again.reused) == ("finished", 40, 25)
    elif unread == "brown":  # half of a step's checks are not most of them
        assert second == {"asked": 80, "unanswered": 40, "median_mass": 0.02}
    elif least:
        assert first == {"asked": 80, "unanswered": 0, "median_mass": 1.0}


@pytest.mark.parametrize(("cached", "shown", "noted"), [(0, "golden_sentences 0%", True), (9, "90%", False)])
def test_a_run_tells_what_the_prefix_cache_had(
    answer: Answer, compose: Compose, tmp_path: Path, cached: int, shown: str, noted: bool
):
    def says(request: Request) -> Any:
        said, usage = answer(request), Usage(10, cached if request.prompt.image else 0, 1)
        if isinstance(request, Choose):
            return Chosen((said, 1 - said), usage=usage)
        return Generated(said, "stop", usage)

    summary = run(compose("data.count=12"), engines=both(Scripted(says)), command="python -m scalecap")
    screen = summary.screen()
    assert "prompt tokens from the prefix cache: golden_sentences" in screen
    assert shown in screen
    assert ("hardly ever reused" in screen) is noted
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["steps"]["golden_sentences"]["cached_share"] == cached / 10
    assert written["steps"]["raw_questions"]["cached_share"] == 0
    assert len([note for note in written["notes"] if "enable_prefix_caching" in note]) == noted


def test_more_rows_go_on_in_the_same_folder(compose: Compose, engines: Engines, tmp_path: Path):
    run(compose("data.limit=2"), engines=engines)
    summary = run(compose("data.limit=3", "rows_in_flight=1"), engines=engines)
    assert (summary.done, summary.reused) == (3, 2)
    assert run(compose("data.limit=1"), engines=engines).done == 1
    assert len(captions(tmp_path)) == 1


def test_another_config_in_the_same_folder_is_refused(compose: Compose, engines: Engines):
    run(compose("data.limit=1"), engines=engines)
    with pytest.raises(RunError, match=r"golden_sentences\.threshold: was 0\.5, is 0\.7"):
        run(compose("data.limit=1", "pipeline.steps.golden_sentences.threshold=0.7"), engines=engines)


def test_a_new_threshold_asks_nothing_again(compose: Compose, engines: Engines, tmp_path: Path):
    run(compose("data.limit=2"), engines=engines)
    changed = compose("data.limit=2", "pipeline.steps.golden_sentences.threshold=0.7", f"output={tmp_path}/b")
    summary = run(changed, engines=engines)
    total = summary.usage.total
    assert total.requests == total.reused == 18


def test_when_every_row_fails_the_run_stops_early(
    compose: Compose, engines: Engines, tmp_path: Path, rows: Callable[..., str]
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
    assert len(captions(tmp_path)) == summary.failed


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
    tmp_path: Path,
    rows: Callable[..., str],
    most: str,
    broken: tuple[int, ...],
    reason: str | None,
):
    settings = compose(
        "data=jsonl", rows(40, broken=tuple(broken)), "rows_in_flight=1", f"max_failures={most}"
    )
    summary = run(settings, engines=engines)
    if reason is None:
        assert (summary.status, summary.failed, len(captions(tmp_path))) == ("finished", len(broken), 40)
    else:
        assert (summary.status, summary.reason, summary.exit_code) == ("stopped", reason, 1)
        assert len(captions(tmp_path)) < 40
        settings.max_failures = None
        assert run(settings, engines=engines).done == 40 - len(broken)


def test_a_dead_engine_keeps_what_was_finished(answer: Answer, compose: Compose, tmp_path: Path):
    asked = 0

    def dies(request: Request) -> str | float:
        nonlocal asked
        asked += first_words(request) == "Describe the picture."
        if asked > 2:
            raise EngineDead("out of memory")
        return answer(request)

    summary = run(compose("data.limit=5", "rows_in_flight=1", "cache=off"), engines=both(Scripted(dies)))
    assert (summary.exit_code, summary.done, summary.reason) == (1, 2, "out of memory")
    assert len(captions(tmp_path)) == 2
    assert run(compose("data.limit=5"), engines=both(Scripted(answer))).reused == 2


@pytest.mark.parametrize("each", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_rows_in_flight(
    answer: Answer, compose: Compose, tmp_path: Path, each: signal.Signals
):
    asked = 0

    def interrupts(request: Request) -> str | float:
        nonlocal asked
        if isinstance(request, Generate) and first_words(request) == "Describe the picture.":
            asked += 1
            if asked == 3:
                os.kill(os.getpid(), each)
        return answer(request)

    settings = compose("rows_in_flight=1", "cache=off")
    summary = run(settings, engines=both(Scripted(interrupts)))
    assert (summary.exit_code, summary.status) == (130, "interrupted")
    assert 3 <= summary.done < 24
    assert len(captions(tmp_path)) == summary.done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(compose(), engines=both(Scripted(answer))).reused == summary.done


def test_a_second_signal_stops_at_once(answer: Answer, compose: Compose, tmp_path: Path):
    async def hangs(request: Request) -> str | float:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
        await asyncio.sleep(60)
        return answer(request)

    summary = run(compose("rows_in_flight=2"), engines=both(Scripted(hangs)))
    assert (summary.exit_code, summary.done, summary.failed) == (130, 0, 0)
    assert captions(tmp_path) == []


def test_an_engine_error_costs_its_row_alone(answer: Answer, compose: Compose, tmp_path: Path):
    failed: set[str] = set()

    def fails_once(request: Request) -> str | float:
        if request.prompt.image and not failed:
            failed.add(request.prompt.image.hash)
        if request.prompt.image and request.prompt.image.hash in failed:
            raise EngineError("no")
        return answer(request)

    summary = run(compose("data.limit=3", "cache=off"), engines=both(Scripted(fails_once)))
    assert (summary.exit_code, summary.done, summary.failed) == (3, 2, 1)
    errors = [row["error"] for row in captions(tmp_path) if row["error"]]
    assert errors == [{"step": "init_caption", "kind": "engine", "message": "no"}]


def test_the_embedded_model_warns_of_other_pictures(
    compose: Compose, rows: Callable[..., str], engines: Engines
):
    summary = run(compose("data=jsonl", rows(1)), engines=engines)
    assert "knows its own world" in summary.screen()
    assert not run(compose("data.limit=1", "output=b"), engines=engines).notes


def test_flags_are_counted(compose: Compose, tmp_path: Path):
    nothing_true = Scripted(lambda request: "There is a cat." if isinstance(request, Generate) else 0.0)
    summary = run(compose("data.limit=2"), engines=both(nothing_true))
    assert summary.flags == {"final_caption": {"fallback": 2}}
    assert captions(tmp_path)[0]["flags"] == {"final_caption": ["fallback"]}
    assert captions(tmp_path)[0]["final_caption"] == "There is a cat."


@pytest.mark.parametrize(
    ("condition", "note"),
    [
        ("golden_sentences", "final_caption: `when: golden_sentences` held for all 2 rows."),
        ("not golden_sentences", "final_caption: `when: not golden_sentences` held for none of 2 rows."),
        ("id == 1", None),
    ],
)
def test_a_condition_that_held_for_all_rows_or_none_is_told(
    compose: Compose, engines: Engines, rows: Callable[..., str], condition: str, note: str | None
):
    step = f"+pipeline.steps.final_caption.when='{condition}'"
    summary = run(compose("data=jsonl", rows(2), step), engines=engines)
    assert [each for each in summary.notes if "when" in each] == ([note] if note else [])
    skipped = {"golden_sentences": 0, "not golden_sentences": 2, "id == 1": 1}[condition]
    assert summary.flags == ({"final_caption": {"skipped": skipped}} if skipped else {})


def test_items_are_kept_and_fail_as_rows_do(compose: Compose, tmp_path: Path, rows: Callable[..., str]):
    broken, asked = True, list[str]()

    def says(request: Request) -> Any:
        text, picture = request.prompt.text, request.prompt.image
        asked.append(text)
        if isinstance(request, Generate):
            return f"A dog. It is number {request.seed}."
        if broken and picture.pixels.getpixel((0, 0))[0] == 1 and "number" in text:
            raise EngineError("no")
        return 0.9

    settings = compose("data=jsonl", rows(3), "pipeline=best_of_n", "pipeline.steps.drafts.samples=3")
    summary = run(settings, engines=both(Scripted(says)))
    first, failed, last = captions(tmp_path)
    assert (summary.done, summary.failed, failed["error"]["step"]) == (2, 1, "golden_sentences")
    assert [row["id"] for row in captions(tmp_path)] == [0, 1, 2]
    assert len(set(failed["drafts"])) == len(set(first["drafts"])) == 3
    assert failed["sentences_about"] == first["sentences_about"] == [0, 0, 1, 1, 2, 2]
    assert not {*first["drafts"]} & {*last["drafts"]}
    broken = False
    asked.clear()
    assert run(settings, engines=both(Scripted(says))).done == 3
    # Drafts, and the check of the sentence that they share, are on hand.
    assert len(asked) == 3
    assert all("number" in text for text in asked)
    assert captions(tmp_path)[0] == first


def test_an_empty_data_set_is_an_error(compose: Compose, engines: Engines, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(RunError, match=r"no rows|empty"):
        run(compose("data=jsonl", f"data.path={tmp_path}/rows.jsonl"), engines=engines)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pipeline.steps.golden_sentences.treshold=0.7", "threshold"),
        ("pipeline.steps.golden_sentences.stage=verfy", "verify"),
        ("pipeline.steps.golden_sentences.texts=sentence", "sentences"),
        ("prompts.verify='{{ txt }}'", "text"),
        ("~pipeline.steps.final_details", "final_details"),
        ("data=jsonl", "data.path"),
    ],
)
def test_a_fault_is_found_before_a_model_loads(compose: Compose, override: str, message: str):
    settings = compose(override)
    for work in (run, plan):
        with pytest.raises(RunError, match=message):
            work(settings)


def test_the_plan_shows_steps_models_and_prompts(compose: Compose):
    shown = plan(compose("model=scalecap-7b-72b"))
    written = "[golden_sentences, golden_sentences_scores, golden_sentences_refuted]"
    assert f"golden_sentences: verify([sentences]) -> {written}" in shown
    assert "llm: Qwen/Qwen2-72B-Instruct" in shown
    assert "Given the image, is the description '<text>' directly supported" in shown


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("python -m scalecap", "python -m scalecap 'output=/runs/a b'"),
        ("python -m scalecap output=here", "python -m scalecap output=here"),
        ("python -m scalecap -m seed=1,2", "python -m scalecap -m seed=1,2 hydra.sweep.dir=/runs"),
        ("python -m scalecap -m hydra.sweep.dir=s", "python -m scalecap -m hydra.sweep.dir=s"),
    ],
)
def test_the_command_that_goes_on_names_the_folder(typed: str, shown: str):
    assert Summary(Path("/runs/a b"), typed).resume == shown


def test_lines_tell_how_far_it_is(compose: Compose, answer: Answer, monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level("INFO", "scalecap")
    run(compose("data.limit=3"), engines=both(Scripted(answer)))
    assert "0 of 3 rows" in caplog.text
    caplog.clear()
    run(compose("data.limit=4"), engines=both(Scripted(answer)))
    assert "3 of 4 rows" in caplog.text
    assert "0 of 4 rows" not in caplog.text


async def test_nothing_is_told_after_the_end(monkeypatch, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level("INFO", "scalecap")
    with progress.Progress(1, RunUsage(), live=False) as shown:
        await asyncio.sleep(0.6)
        shown.row(failed=False)
    told = len(caplog.records)
    assert "1 of 1 rows" in caplog.records[-1].message
    await asyncio.sleep(1.2)
    assert len(caplog.records) == told


def test_columns_of_the_data_that_the_output_has_too_are_told(compose, engines, tmp_path):
    Pillow.new("RGB", (30, 30)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "error": "old", "flags": {}}')
    summary = run(compose("data=jsonl", f"data.path={tmp_path}/rows.jsonl"), engines=engines)
    assert "The data's own flags and error are left out" in summary.screen()
    (line,) = (tmp_path / "run" / "captions.jsonl").read_text().splitlines()
    assert json.loads(line)["error"] is None


async def test_speed_is_counted_from_the_first_row_and_not_while_a_model_loads(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    shown = progress.Progress(100, RunUsage(), live=False)
    now += 60  # the model loads
    with shown:
        for _ in range(50):
            shown.row(failed=False)
        now += 10
        assert str(shown).startswith("50 of 100 rows, 5.00 rows/s")
        assert str(shown).endswith("10 s left")


@pytest.mark.parametrize(
    ("installed", "gpus", "base_url", "engine", "why"),
    [
        (True, 1, None, "vllm", "a GPU and vLLM"),
        (True, 0, None, "transformers", "no GPU"),
        (False, 1, None, "transformers", "not installed"),
        (True, 1, "http://localhost/v1", "openai", "base_url"),
    ],
)
def test_auto_takes_what_the_machine_has(monkeypatch, installed, gpus, base_url, engine, why):
    torch = pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    monkeypatch.setattr(opening, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    chosen, reason = opening.choose_engine(EngineSettings(base_url=base_url))
    assert chosen == engine
    assert why in reason


async def test_a_missing_library_is_told_with_its_mend(monkeypatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name="vllm")

    monkeypatch.setattr(opening.importlib, "import_module", absent)
    with pytest.raises(EngineError, match=r'needs the module vllm: pip install "scalecap\[vllm\]"'):
        await opening.open_engine(ModelSettings("x"), EngineSettings("vllm"))


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
        "+pipeline.steps.told={stage: counting/length, texts: sentences}",
        "+pipeline.steps.true={stage: counting/share, texts: sentences}",
    )
    summary = run(settings, engines=engines)
    written = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    assert written == {
        "told": {"mean": 2.0, "low": 2.0, "high": 2.0, "rows": 4},
        "true.dogs": {"mean": 0.5, "low": 0.5, "high": 0.5, "rows": 4},
    }
    screen = summary.screen()
    assert re.search(r"^  told +2 \(2 to 2\)$", screen, re.M)
    assert re.search(r"^  true\n    dogs +0.5 \(0.5 to 0.5\)$", screen, re.M)
    assert captions(tmp_path)[0]["true"] == {"dogs": {"count": 1, "of": 2}, "none": None}
