"""What a run costs: limits that stop it, and estimates compared with what a run really took."""

import json
import math
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from runs import Compose, Rows, captions

from scalecap.config.settings import SettingsError
from scalecap.engines.scripted import Scripted
from scalecap.interpreter.dispatch import RowUsage, RunUsage
from scalecap.run.costs import estimate_cost, extrapolate, limit_reached
from scalecap.runner import RunError, plan, run


def test_equal_rows_give_a_zero_width_interval_and_one_row_an_infinite_one():
    assert extrapolate([3.0] * 5, 100) == (300, 300, 300)
    assert extrapolate([3.0], 100) == (300, 0.0, math.inf)


def test_the_interval_covers_the_total_in_about_19_of_20_draws():
    import numpy as np

    dice = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        rows = dice.gamma(4.0, 3.0, size=60)
        low, high = extrapolate(rows[:10], 60)[1:]
        held += low <= rows.sum() <= high
    assert held / 400 >= 0.92


def test_an_estimate_includes_time_and_cost():
    usages = [RowUsage(10, 1000, 100), RowUsage(12, 1200, 140)]
    found = estimate_cost(usages, 100, seconds=3.0, price=0.01)
    assert found is not None
    assert found.requests.mean == 1100
    assert found.seconds == 300
    assert found.cost is not None
    assert found.cost.mean == pytest.approx(1.0)
    assert "all 100 rows, extrapolated from 2: about 1,100 (" in str(found)
    assert "5 min at this pace, a cost of 1 (" in str(found)
    assert estimate_cost([], 100) is None


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("max_requests=20", "max_requests=20 reached (2"),
        ("max_tokens=200", "max_tokens=200 reached"),
        ("max_cost=0.0001", "max_cost=0.0001 reached"),
    ],
)
def test_a_limit_stops_the_run_and_the_same_command_resumes_it(
    limit: str, reason: str, compose: Compose, engines: dict[str, Scripted], rows: Rows
):
    words = ["data=jsonl", rows(12), "progress=false", "cache=off", "rows_in_flight=1", "pipeline=seed"]
    words += ["model=own", "model.vlm.name=m", "engine.price={prompt: 1, generated: 2}"]
    first = run(compose(*words, limit), engines=engines)
    assert (first.status, first.exit_code) == ("stopped", 1)
    assert first.reason.startswith(reason)
    assert 0 < first.done < 12
    second = run(compose(*words), engines=engines)
    assert (second.status, second.done, second.reused) == ("finished", 12, first.done)


def test_a_limit_is_named_with_all_its_digits(compose: Compose):
    usage = RunUsage()
    usage.steps["a"].requests = 1234567
    reason = limit_reached(compose("max_requests=1234567"), usage, None)
    assert reason.startswith("max_requests=1234567 reached (1,234,567)")


def test_cost_is_counted_by_role_and_cached_replies_are_free(
    compose: Compose, engines: dict[str, Scripted], rows: Rows, tmp_path: Path
):
    words = ["data=jsonl", rows(2), "progress=false", "pipeline=seed", f"cache.dir={tmp_path}/cache"]
    words += ["model=own", "model.vlm.name=m", "model.llm.name=n", "engine.price={prompt: 1, generated: 2}"]
    words += ["+model.llm.engine.price={prompt: 100, generated: 100}"]
    first = run(compose(*words), engines=engines)
    llm = ("raw_questions", "final_caption")
    expected = sum(
        100 * (count.prompt_tokens + count.generated_tokens)
        if name in llm
        else count.prompt_tokens + 2 * count.generated_tokens
        for name, count in first.usage.steps.items()
    )
    assert first.cost == pytest.approx(expected / 1e6)
    assert json.loads((first.output / "summary.json").read_text())["cost"] == first.cost
    again = run(compose(*words, f"output={tmp_path}/again"), engines=engines)
    assert again.cost == 0


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_limit_that_is_reached_as_all_rows_are_done_stops_nothing(
    in_flight: int, compose: Compose, engines: dict[str, Scripted], rows: Rows
):
    words = ["data=jsonl", rows(3), "progress=false", "pipeline=direct", f"rows_in_flight={in_flight}"]
    done = run(compose(*words, f"max_requests={4 - in_flight}"), engines=engines)
    assert (done.status, done.reason, done.done, done.exit_code) == ("finished", "", 3, 0)


def test_a_step_without_a_model_that_is_skipped_costs_nothing(
    compose: Compose, engines: dict[str, Scripted], rows: Rows
):
    words = ["data=jsonl", rows(1), "progress=false", "pipeline=seed", "model=own", "model.vlm.name=m"]
    words += ["engine.price={prompt: 1, generated: 2}", "+pipeline.steps.sentences.when=false"]
    done = run(compose(*words), engines=engines)
    assert done.flags["sentences"] == {"skipped": 1}
    assert done.cost


def test_a_preview_estimates_all_rows_and_the_command_without_it_resumes(
    compose: Compose, engines: dict[str, Scripted], rows: Rows
):
    words = ["data=jsonl", rows(9), "progress=false", "model=own", "model.vlm.name=m", "pipeline=seed"]
    first = run(compose(*words, "preview=3"), engines=engines, command="python -m scalecap preview=3 a=b")
    assert (first.status, first.done, first.exit_code) == ("preview", 3, 0)
    assert first.estimate is not None
    screen = first.screen()
    assert screen.startswith("Preview: 3 of 9 rows captioned")
    assert "all 9 rows, extrapolated from 3: about " in screen
    assert "preview=3" not in first.resume
    planned = plan(compose(*words))
    assert planned.splitlines()[-2].startswith("Estimate: all 9 rows, extrapolated from 3: about ")
    second = run(compose(*words), engines=engines)
    assert (second.status, second.done, second.reused) == ("finished", 9, 3)
    took = sum(json.loads(line)["usage"][0] for line in journal(second.output) if '"usage"' in line)
    assert first.estimate.requests.mean == took  # rows that the scripted model answers alike


def test_a_preview_repeated_takes_the_same_rows(
    compose: Compose, engines: dict[str, Scripted], rows: Rows, tmp_path: Path
):
    words = ["data=jsonl", rows(9, broken=(1,)), "progress=false", "pipeline=seed", "model=own"]
    words += ["model.vlm.name=m", "preview=3"]
    first = run(compose(*words), engines=engines)
    assert (first.status, first.done, first.failed) == ("preview", 2, 1)
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    retried = run(compose(*words), engines=engines)
    assert (retried.status, retried.done, retried.failed) == ("preview", 3, 0)
    done = run(compose(*words), engines=None)  # no model is loaded: nothing is left to do
    assert (done.status, done.done, done.reused, done.exit_code) == ("preview", 3, 3, 0)
    assert [row["row_id"] for row in captions()] == ["0", "1", "2"]
    assert retried.estimate is not None
    assert done.estimate is not None
    assert done.estimate.requests.mean == retried.estimate.requests.mean
    assert "all 9 rows, extrapolated from 3: about " in done.screen()
    assert run(compose(*words[:-1], "preview=9"), engines=engines).status == "finished"
    assert run(compose(*words), engines=None).status == "finished"


def test_a_preview_of_unknown_length_says_that_it_has_no_estimate(
    compose: Compose, rows: Rows, engines: dict[str, Scripted], tmp_path: Path
):
    rows(3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3):
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
    words = ["data=webdataset", f"data.path={tmp_path}/a.tar", "progress=false", "model=own"]
    settings = compose(*words, "model.vlm.name=m", "preview=2")
    why = "No estimate: the number of rows of the data is unknown."
    assert why in plan(settings)
    done = run(settings, engines=engines)
    assert (done.status, done.estimate) == ("preview", None)
    assert why in done.screen()


def test_the_summary_of_a_preview_of_one_row_is_valid_json(
    compose: Compose, engines: dict[str, Scripted], rows: Rows
):
    words = ["data=jsonl", rows(3), "progress=false", "model=own", "model.vlm.name=m", "pipeline=seed"]
    done = run(compose(*words, "preview=1"), engines=engines)
    text = (done.output / "summary.json").read_text()
    assert json.loads(text)["estimate"]["requests"][1:] == [0.0, None]
    assert "Infinity" not in text


def journal(folder: Path) -> list[str]:
    return (folder / "journal.jsonl").read_text().splitlines()


def test_a_preview_of_all_rows_is_a_finished_run(compose: Compose, engines: dict[str, Scripted], rows: Rows):
    done = run(
        compose("data=jsonl", rows(2), "progress=false", "model=own", "model.vlm.name=m", "preview=5"),
        engines=engines,
    )
    assert done.status == "finished"


@pytest.mark.slow
def test_a_preview_estimates_what_a_run_of_the_embedded_model_takes(compose: Compose):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    words = ["data.count=20", "data.seed=5", "progress=false", "report=false", "cache=off"]
    found = run(compose(*words, "preview=8")).estimate
    assert found is not None
    whole = run(compose(*words))
    assert whole.status == "finished"
    usages = [json.loads(line)["usage"] for line in journal(whole.output) if '"usage"' in line]
    for place, estimated in enumerate([found.requests, found.prompt_tokens, found.generated_tokens]):
        took = sum(usage[place] for usage in usages)
        assert estimated.mean == pytest.approx(took, rel=0.2)


@pytest.mark.parametrize(
    "words",
    [["max_requests=0"], ["max_cost=-1"], ["preview=0"], ["engine.price.prompt=-1"]],
)
def test_invalid_limits_are_refused(words: list[str], compose: Compose):
    key = words[0].partition("=")[0]
    with pytest.raises(SettingsError, match=key):
        compose(*words)


def test_a_cost_limit_needs_the_prices_of_the_models_in_use(compose: Compose):
    unpriced = "+model.judge.engine={name: openai, base_url: http://x/v1}"
    words = ["max_cost=1", "engine.price={prompt: 1, generated: 2}", "model.judge.name=other", unpriced]
    assert "Configuration OK" in plan(compose(*words))
    with pytest.raises(RunError, match=r"max_cost=1.0 requires engine.price=.* of the engine of judge"):
        plan(compose(*words, "evaluate=grounding", "evaluate.caption=final_caption"))
    with pytest.raises(RunError, match="of the engine of vlm and llm"):
        plan(compose("max_cost=1"))


def test_the_first_twenty_rows_give_an_estimate_for_all(
    compose: Compose, engines: dict[str, Scripted], rows: Rows, caplog: Any
):
    caplog.set_level("INFO", "scalecap")
    run(compose("data=jsonl", rows(25), "progress=false", "model=own", "model.vlm.name=m"), engines=engines)
    assert "all 25 rows, extrapolated from 20: about " in caplog.text
