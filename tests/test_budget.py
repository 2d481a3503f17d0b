"""The budget of a row: exact counts of requests, whatever the order in which replies come."""

import asyncio
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import go, row
from runs import Compose, Rows, captions, roles

from scalecap.config.settings import SettingsError
from scalecap.engines.base import Choose, Generated, Image, Sampling, Score
from scalecap.engines.scripted import Scripted
from scalecap.interpreter.allowance import Allowance, BudgetExhausted
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Finished, Pipeline, PipelineError
from scalecap.runner import run
from scalecap.stages import Measures, ModelClient, stage
from scalecap.stages.fuse import Fuse
from scalecap.text.templates import Template

pytestmark = pytest.mark.usefixtures("own_stages")
STEPS: dict[str, dict[str, Any]] = {
    "drafts": {"stage": "generate", "prompt": "Caption.", "image": "image", "samples": 2},
    "more": {"stage": "generate", "prompt": "What else?", "image": "image"},
    "sentences": {"stage": "split_each", "texts": "drafts"},
    "golden": {"stage": "verify", "texts": "sentences", "prompt": "True: {{ text }}"},
    "answers": {"stage": "generate", "prompt": "{{ it }}?", "image": "image", "each": {"it": "golden"}},
    "final": {"stage": "generate", "prompt": "Join: {{ a }}", "variables": {"a": "answers"}},
}


def answer(request: Any) -> Any:
    return 0.9 if isinstance(request, Choose) else "One. Two. Three."


async def take(
    steps: Mapping[str, Any], budget: int | None, script: Any = answer
) -> tuple[Finished, RunUsage]:
    """A row through the steps, and what was counted."""
    (finished,), counts = await go(steps, [row()], script, budget=budget)
    return finished, counts


def test_items_are_granted_in_order_up_to_the_budget_and_limit():
    allowance = Allowance(requests=5)
    assert allowance.grant([2, 0, 2, 0, 2]) == 4
    assert (allowance.requests, allowance.over_limit) == (1, 1)
    assert allowance.grant([1, 1]) == 1
    assert (allowance.requests, allowance.over_limit) == (0, 2)
    assert Allowance(items=2.9).grant([1] * 5) == 2
    assert Allowance(items=-1).grant([1]) == 0
    assert Allowance().grant([7] * 3) == 3


def test_a_step_that_never_consults_it_runs_while_requests_are_left():
    Allowance(requests=1).check()
    with pytest.raises(BudgetExhausted):
        Allowance(requests=0).check()
    consulted = Allowance(requests=1)
    consulted.grant([1])
    consulted.check()


@pytest.mark.parametrize(
    ("budget", "requests", "over_limit"),
    [
        # In the order of the plan: 2 drafts, 1 more, 6 checks, 6 answers, 1 at the end.
        (None, [2, 1, 6, 6, 1], {}),
        (16, [2, 1, 6, 6, 1], {}),
        (15, [2, 1, 6, 6, 0], {"final": 1}),
        (13, [2, 1, 6, 4, 0], {"answers": 2, "final": 1}),
        (6, [2, 1, 3, 0, 0], {"golden": 3, "answers": 3}),
        (1, [1, 0, 0, 0, 0], {"drafts": 1, "more": 1, "golden": 3}),
    ],
)
async def test_a_budget_is_spent_to_the_last_request_and_never_over(
    budget: int | None, requests: list[int], over_limit: dict[str, int]
):
    done, counts = await take(STEPS, budget)
    assert done.error is None
    names = ("drafts", "more", "golden", "answers", "final")
    assert [counts.steps[name].requests for name in names] == requests
    assert done.usage.requests == sum(requests)
    assert done.over_limit == over_limit
    assert done.flags == {name: ["over_limit"] for name in done.over_limit}
    # Columns aligned with another column stay aligned.
    assert len(done.columns["answers"]) == len(done.columns["golden"])
    assert [each["text"] for each in done.columns["golden_scores"]] == done.columns["sentences"]
    assert sum(each.get("checked", True) for each in done.columns["golden_scores"]) == requests[2]
    assert done.columns["golden_refuted"] == []


async def test_requests_do_not_depend_on_which_reply_comes_first():
    orders: list[list[float]] = [[0.0, 0.01, 0.003, 0.006], [0.006, 0.0, 0.01, 0.003], [0.0]]
    found = []
    for waits in orders:
        turns = itertools.cycle(waits)

        async def script(request: Any, turns: Any = turns) -> Any:
            await asyncio.sleep(next(turns))
            return answer(request)

        done, _ = await take(STEPS, 11, script)
        found.append((done.columns, done.flags, done.over_limit, done.usage))
    assert found[0] == found[1] == found[2]
    assert found[0][2] == {"answers": 4, "final": 1}


async def test_a_second_draw_of_a_faulty_reply_counts_and_is_made():
    def script(request: Any) -> Any:
        return Generated("One.", "length") if request.prompt.text == "Caption." else answer(request)

    done, counts = await take(STEPS, 3, script)
    assert counts.steps["drafts"].requests == 4
    assert counts.steps["drafts"].retried == 2
    assert done.over_limit == {"more": 1, "golden": 2}
    assert done.usage.requests == 4


async def test_a_limit_holds_back_for_later_steps():
    steps = STEPS | {
        "golden": STEPS["golden"] | {"limit": "(budget_left - 1) / 2"},
        "answers": STEPS["answers"] | {"limit": "budget_left - 1"},
    }
    done, counts = await take(steps, 10)
    assert counts.steps["golden"].requests == 3  # of 7 that are left, one is for the end
    assert counts.steps["answers"].requests == 3
    assert counts.steps["final"].requests == 1
    assert done.over_limit == {"golden": 3}


async def test_a_limit_needs_no_budget_and_reads_columns():
    steps = STEPS | {
        "golden": STEPS["golden"] | {"limit": 5},
        "answers": STEPS["answers"] | {"limit": "[budget_left, sentences | length / 3] | min"},
    }
    done, counts = await take(steps, None)
    assert counts.steps["golden"].requests == 5
    assert counts.steps["answers"].requests == 2
    assert done.over_limit == {"golden": 1, "answers": 3}


@pytest.mark.parametrize("limit", ["budget_left // 2", "(budget_left / 2) | int", "budget_left % 2 + 9"])
async def test_a_limit_can_be_computed_without_a_budget(limit: str):
    done, _ = await take(STEPS | {"golden": STEPS["golden"] | {"limit": limit}}, None)
    assert (done.error, done.over_limit) == (None, {})


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ("budget_lef", "limit: unknown name 'budget_lef'; did you mean 'budget_left'"),
        ("(", "limit: '(' is not an expression"),
        ([1], "limit: expected an expression"),
    ],
)
def test_a_limit_is_checked_before_any_request(limit: Any, problem: str):
    steps = STEPS | {"golden": STEPS["golden"] | {"limit": limit}}
    with pytest.raises(PipelineError) as caught:
        Pipeline.build(steps, {"id": "text"})
    assert any(problem in each for each in caught.value.problems)
    with pytest.raises(PipelineError, match="limit: split_each sends no requests"):
        Pipeline.build(STEPS | {"sentences": STEPS["sentences"] | {"limit": 3}}, None)


async def test_a_limit_that_is_not_a_number_fails_the_row():
    done, _ = await take(STEPS | {"golden": STEPS["golden"] | {"limit": "drafts"}}, None)
    assert done.error is not None
    assert (done.error["step"], done.error["kind"]) == ("golden", "PromptError")
    assert "'drafts': expected a number, got ['One." in done.error["message"]


@pytest.mark.parametrize(
    ("step", "left", "requests", "over_limit"),
    [
        ({"stage": "verify", "texts": "t", "prompt": "{{ text }}", "ensemble": ["2 {{ text }}"]}, 5, 4, 3),
        (
            {
                "stage": "verify",
                "texts": "t",
                "prompt": "{{ text }}",
                "batch": 2,
                "batch_prompt": "Which? {{ texts }}",
            },
            # A batch takes two requests, the reply and its probabilities; the last text is alone.
            3,
            2,
            3,
        ),
        ({"stage": "likelihood", "texts": "t", "prompt": "Name one."}, 3, 3, 2),
        ({"stage": "contrast", "texts": "t", "prompt": "Caption.", "words": "all"}, 5, 4, 3),
        ({"stage": "choose", "texts": "t", "about": "a", "statement_prompt": "{{ text }}"}, 3, 2, 2),
        ({"stage": "choose", "texts": "t", "about": "a", "prompt": "Which? {{ options }}"}, 2, 2, 1),
        (
            {
                "stage": "fuse",
                "prompt": "{{ context }}{{ object_info }}{{ position_info }}",
                **dict.fromkeys(("context", "object_info", "position_info"), "t"),
            },
            0,
            0,
            1,
        ),
    ],
)
async def test_every_stage_keeps_to_what_is_left(
    step: dict[str, Any], left: int, requests: int, over_limit: int, image: Image
):
    """Five texts in three groups."""

    def script(request: Any) -> Any:
        if isinstance(request, Choose):
            return 0.9
        return -1.0 if isinstance(request, Score) else "1. yes\n2. yes"

    counts = RunUsage()
    dispatcher = Dispatcher(roles(script), None, Sampling(), 0, counts, 0.0)
    allowance = Allowance(left)
    given = step | ({"fallback": "empty"} if step["stage"] == "fuse" else {})
    pipeline = Pipeline.build({"x": given}, {"t": "texts", "a": "list"})
    texts = ["A one.", "A two.", "A three.", "A four.", "A five."]
    flags: list[str] = []
    client = dispatcher.client("x", flags.append, None, allowance)
    values = await pipeline.steps[0].run(client, {"t": texts, "a": [0, 0, 1, 1, 2]}, image, allowance)
    assert counts.total.requests == requests
    assert allowance.over_limit == over_limit
    assert "over_limit" in flags
    if "x_scores" in values and step["stage"] != "choose":
        assert [each["text"] for each in values["x_scores"]] == texts
        assert sum(each["kept"] for each in values["x_scores"]) == len(values["x"]) <= 5 - over_limit


async def test_a_custom_stage_runs_while_requests_are_left_and_metrics_do_not_count():
    @stage(name="t/own")
    class Own:
        async def __call__(self, client: ModelClient, *, image: Image) -> list[str]:
            return [(await client.generate(f"own {number}", image=image)).text for number in range(3)]

    @stage(name="t/judged")
    class Judged:
        async def __call__(self, client: ModelClient, *, text: str, image: Image) -> Measures:
            return {"true": (await client.choose(f"True? {text}", image=image)).probabilities[0]}

    steps = {
        "first": {"stage": "generate", "prompt": "Caption.", "image": "image"},
        "own": {"stage": "t/own"},
        "judged": {"stage": "t/judged", "text": "first"},
    }
    done, _ = await take(steps, 2)
    assert len(done.columns["own"]) == 3
    assert done.columns["judged"] == {"true": 0.9}
    assert (done.usage.requests, done.over_limit) == (5, {})
    done, _ = await take(steps, 1)
    assert (done.columns["own"], done.columns["judged"]) == ([], {"true": 0.9})
    assert (done.over_limit, done.flags) == ({"own": 1}, {"own": ["over_limit"]})


def test_skipped_items_are_counted_in_the_summary_including_rows_of_an_earlier_run(
    compose: Compose, engines: dict[str, Scripted], rows: Rows
):
    words = ["data=jsonl", rows(5), "progress=false", "model=own", "model.vlm.name=m", "pipeline.budget=5"]
    first = run(compose(*words, "preview=2"), engines=engines)
    # A caption, two checks, a question and one of two answers, which nothing is left to check.
    assert first.over_limit == {"raw_answers": 2, "final_details": 2}
    again = run(compose(*words), engines=engines)
    assert (again.done, again.reused) == (5, 2)
    assert again.over_limit == {"raw_answers": 5, "final_details": 5}
    assert json.loads((again.output / "summary.json").read_text())["over_limit"] == again.over_limit
    assert "skipped by limits and budget: 5 of final_details, 5 of raw_answers" in again.screen()
    taken = [json.loads(line)["usage"][0] for line in journal(again.output)]
    assert taken == [5] * 5
    flags = {"raw_answers": ["over_limit"], "final_details": ["over_limit"]}
    assert [row["flags"] for row in captions()] == [flags] * 5


@pytest.mark.parametrize(
    ("budget", "final", "requests"),
    [
        # A draft and a check, a list of questions, an answer and its check; nothing is left to fuse.
        (
            5,
            "There is a dog. The dog is brown.",
            {"drafts": 1, "golden_sentences": 1, "joint_questions": 1, "raw_answers": 1, "final_details": 1},
        ),
        (
            12,
            "A dog, brown. The dog is at the left.",
            {"drafts": 1, "golden_sentences": 2, "joint_questions": 1, "raw_answers": 2, "final_details": 2}
            | {"fused_caption": 1, "checked_sentences": 1},
        ),
    ],
)
def test_dense_keeps_to_its_budget(
    compose: Compose, engines: dict[str, Scripted], budget: int, final: str, requests: dict[str, int]
):
    summary = run(compose("data.limit=1", "pipeline=dense", f"pipeline.budget={budget}"), engines=engines)
    steps = {name: count.requests for name, count in summary.usage.steps.items() if count.requests}
    assert steps == requests
    (row,) = captions()
    assert (row["error"], row["final_caption"]) == (None, final)


def journal(folder: Path) -> list[str]:
    return [line for line in (folder / "journal.jsonl").read_text().splitlines() if '"usage"' in line]


def test_another_budget_is_another_config(compose: Compose, engines: dict[str, Scripted]):
    run(compose("data.limit=1", "pipeline.budget=3"), engines=engines)
    with pytest.raises(Exception, match=r"pipeline\.budget"):
        run(compose("data.limit=1", "pipeline.budget=4"), engines=engines)
    with pytest.raises(SettingsError, match=r"pipeline\.budget=0: must be 1 or more"):
        compose("pipeline.budget=0")


def test_the_plan_shows_budget_and_limits():
    plan = Pipeline.build(
        STEPS | {"answers": STEPS["answers"] | {"limit": "budget_left / 2"}}, None, budget=9
    ).plan()
    assert plan.startswith("budget: 9 requests an image at most, spent in this order\ndrafts: ")
    assert "    at most budget_left / 2 items\n" in plan


async def test_a_skipped_fusion_loses_no_detail(recording_client: Any):
    recorder = recording_client(lambda request: 1 / 0)
    recorder.client._allowance.requests = 0
    fuse = Fuse(prompt=Template("{{ context }}{{ object_info }}{{ position_info }}"), fallback="empty")
    details = ["The dog is brown.", "A dog is there."]
    caption = await fuse(recorder.client, context=["A dog."], object_info=details, position_info=details)
    assert caption == "A dog. The dog is brown."
    assert recorder.flags == ["over_limit", "fallback"]


def test_the_main_caption_comes_before_what_is_written_from_its_facts(compose: Compose):
    steps = compose("pipeline=dense", "also=[lengths,structured]").pipeline.steps
    names = [step.name for step in Pipeline.build(steps, None).steps]
    assert names.index("final_caption") < names.index("short_sentences") < names.index("structured_draft")


def test_a_caption_of_which_not_all_can_be_checked_gives_way_to_the_checked_facts(
    compose: Compose, answer: Callable[..., Any]
):
    """The language model makes five sentences out of two facts, for which no checks are left."""
    many = "A dog. A dog is here. It is brown. It sits. It is left."

    def script(request: Any) -> Any:
        joins = request.prompt.text.startswith("Join into one description:")
        return many if joins and not isinstance(request, Choose) else answer(request)

    words = ["data.limit=1", "pipeline=dense", "pipeline.budget=12"]
    summary = run(compose(*words), engines=roles(script))
    (row,) = captions()
    assert row["fused_caption"] == many
    assert row["checked_sentences"] == []
    assert row["final_caption"] == row["assembled_caption"]
    assert "The dog is brown." in row["final_caption"]
    assert summary.over_limit["checked_sentences"] == len(row["fused_sentences"])
