"""Loops: steps repeated with what they found so far."""

from collections.abc import Mapping
from typing import Any

import pytest
from pipeline_runs import an_image, go

from scalecap.engines.base import Choose, EngineError
from scalecap.interpreter.dispatch import RunUsage
from scalecap.interpreter.pipeline import Finished, Pipeline, PipelineError
from scalecap.rows import Row

STEPS: dict[str, dict[str, Any]] = {
    "known": {"stage": "split_sentences", "text": "note"},
    "missed": {
        "stage": "generate",
        "prompt": "Not: {{ known }}",
        "image": "image",
        "variables": {"known": "known"},
        "parse": "sentences",
    },
    "new": {"stage": "deduplicate", "texts": "missed", "known": "known"},
    "golden": {
        "stage": "verify",
        "texts": "new",
        "prompt": "True: {{ text }}",
        "adds_to": "known",
    },
    "facts": {"stage": "deduplicate", "texts": ["known", "golden"]},
}
THINGS = ["A dog.", "A cat. A cow.", "A hen.", "A kite."]
"""The replies of the model, one after the other; it invents the cow."""


def next_thing(request: Any) -> Any:
    text = request.prompt.text
    if isinstance(request, Choose):
        return 0.1 if "cow" in text else 0.9
    return next((each for each in THINGS if each.partition(".")[0] not in text), "None.")


async def take(
    steps: Mapping[str, Any],
    *,
    budget: int | None = None,
    script: Any = next_thing,
    edits: Mapping[str, Any] | None = None,
    **columns: Any,
) -> tuple[Finished, RunUsage]:
    given = Row(0, {"note": "A dog.", **columns}, an_image, edits=edits or {})
    (finished,), counts = await go(steps, [given], script, budget=budget)
    return finished, counts


async def test_it_goes_on_until_nothing_is_found_and_keeps_all_rounds():
    done, counts = await take(STEPS)
    assert done.error is None
    assert done.columns["known"] == ["A dog."]
    assert done.columns["missed"] == ["A cat.", "A cow.", "A hen.", "A kite."]
    assert done.columns["golden"] == ["A cat.", "A hen.", "A kite."]
    assert [each["text"] for each in done.columns["golden_scores"]] == done.columns["new"]
    assert done.columns["golden_refuted"] == ["A cow."]
    assert done.columns["facts"] == ["A dog.", "A cat.", "A hen.", "A kite."]
    assert {name: each.requests for name, each in counts.steps.items()} == {"missed": 4, "golden": 4}
    assert done.flags == {}
    assert list(done.columns)[1:5] == ["known", "missed", "new", "new_repeats"]


async def test_rounds_are_limited_which_is_flagged():
    done, counts = await take(STEPS | {"golden": STEPS["golden"] | {"rounds": 2}})
    assert done.columns["golden"] == ["A cat.", "A hen."]
    assert counts.steps["missed"].requests == 2
    assert done.flags == {"golden": ["unfinished"]}


@pytest.mark.parametrize(
    ("budget", "golden", "dropped"),
    [
        (8, ["A cat.", "A hen.", "A kite."], {}),
        (7, ["A cat.", "A hen.", "A kite."], {"missed": 1}),
        (6, ["A cat.", "A hen."], {"golden": 1}),
        (4, ["A cat."], {"golden": 1}),
        (2, ["A cat."], {"golden": 1, "missed": 1}),
    ],
)
async def test_rounds_end_with_the_budget(budget: int, golden: list[str], dropped: dict[str, int]):
    done, counts = await take(STEPS, budget=budget)
    assert done.columns["golden"] == golden
    assert done.over_limit == dropped
    assert counts.total.requests == budget


async def test_a_failure_in_a_later_round_fails_the_row_at_its_step():
    def script(request: Any) -> Any:
        if "hen" in request.prompt.text:
            raise EngineError("no hens")
        return next_thing(request)

    done, _ = await take(STEPS, script=script)
    assert done.error == {"step": "golden", "kind": "engine", "message": "no hens"}
    assert list(done.columns) == ["note", "known"]


async def test_what_was_edited_by_hand_is_found_once():
    done, counts = await take(STEPS, edits={"golden": ["A fox."]})
    assert done.columns["golden"] == ["A fox."]
    assert done.columns["facts"] == ["A dog.", "A fox."]
    assert counts.steps["missed"].requests == 1
    assert done.flags == {"golden": ["edited"]}


KNOWN = {"missed": STEPS["missed"] | {"adds_to": "known"}}
"""A loop over a column of the data."""


@pytest.mark.parametrize("known", [["A dog."], [], None])
async def test_a_loop_may_begin_with_nothing(known: Any):
    done, _ = await take(KNOWN, script=["A cat.", "A hen.", ""], known=known)
    assert done.error is None
    assert done.columns == {"note": "A dog.", "known": known, "missed": ["A cat.", "A hen."]}


@pytest.mark.parametrize("known", ["A dog.", 3, [3]])
async def test_a_column_that_is_no_list_of_texts_fails_its_row_alone(known: Any):
    done, _ = await take(KNOWN, script=["A cat."], known=known)
    assert done.error is not None
    message = f"adds_to: 'known' is {known!r}, expected a list of texts"
    assert (done.error["step"], done.error["message"]) == ("missed", message)


@pytest.mark.parametrize("value", [None, ["A fox."], "A fox."])
async def test_a_skipped_step_of_a_loop_takes_another_list_or_fails(value: Any):
    steps = {"missed": {**KNOWN["missed"], "when": "false", "otherwise": "other"}}
    done, _ = await take(steps, known=[], other=value)
    if isinstance(value, str):
        assert done.error is not None
        assert done.error["message"] == "otherwise: 'other' is 'A fox.', expected a list of texts"
    else:
        assert done.columns["missed"][:1] == (value or [])


async def test_an_edit_to_null_is_an_empty_round():
    done, _ = await take(KNOWN, known=[], edits={"missed": None})
    assert (done.error, done.columns["missed"]) == (None, [])


async def test_steps_that_need_not_wait_for_the_rounds_do_not_and_the_others_come_after():
    steps = STEPS | {
        "aside": {"stage": "generate", "prompt": "{{ k }}", "image": "image", "variables": {"k": "known"}},
        "after": {"stage": "generate", "prompt": "{{ k }}", "image": "image", "variables": {"k": "missed"}},
    }
    done, _ = await take(steps, budget=50)
    assert done.error is None
    order = [step.name for step in Pipeline.build(steps, None).steps]
    assert order.index("golden") - order.index("missed") == 2  # nothing comes between the steps of a loop
    assert order.index("after") > order.index("golden")
    assert order.index("aside") > order.index("known")


@pytest.mark.parametrize(
    ("golden", "problem"),
    [
        ({"adds_to": "sentences"}, "golden: adds_to: no step and no data column is named 'sentences'"),
        ({"adds_to": "tags"}, "golden: adds_to: the step does not depend on 'tags'"),
        ({"adds_to": "note"}, "golden: adds_to: 'note' is a text, not a list of texts"),
        ({"rounds": 0}, "golden: rounds: expected an integer of at least 1, got 0"),
        ({"adds_to": None, "rounds": 3}, "golden: rounds: requires `adds_to: <column>`"),
    ],
)
def test_an_impossible_loop_is_refused(golden: dict[str, Any], problem: str):
    with pytest.raises(PipelineError) as caught:
        Pipeline.build(STEPS | {"golden": STEPS["golden"] | golden}, {"note": "text", "tags": "texts"})
    assert any(each.startswith(problem) for each in caught.value.problems)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"new": {"stage": "split_each", "texts": "missed"}}, "'new' is in the loop, and its columns"),
        (
            {"missed": STEPS["missed"] | {"parse": "text"}, "new": None},
            "'missed' is in the loop, and its columns",
        ),
        (
            {"again": STEPS["golden"] | {"texts": "missed"}},
            "the step 'missed' is already in the loop of",
        ),
    ],
)
def test_columns_that_cannot_be_joined_are_refused(changed: dict[str, Any], problem: str):
    steps = {name: step for name, step in (STEPS | changed).items() if step is not None}
    if "new" not in steps:
        steps["new"] = {"stage": "split_sentences", "text": "missed"}
    with pytest.raises(PipelineError) as caught:
        Pipeline.build(steps, {"note": "text"})
    assert any(problem in each for each in caught.value.problems)


def test_loops_that_read_from_each_other_are_refused():
    def reads(*columns: str, adds_to: str | None = None) -> dict[str, Any]:
        prompt = " ".join(f"{{{{ {column} }}}}" for column in columns)
        return {"stage": "generate", "prompt": prompt, "variables": list(columns), "parse": "lines"} | (
            {"adds_to": adds_to} if adds_to else {}
        )

    steps = {"a": reads("cats"), "b": reads("dogs")}
    steps |= {"more_cats": reads("a", "b", adds_to="cats"), "more_dogs": reads("a", "b", adds_to="dogs")}
    with pytest.raises(PipelineError) as caught:
        Pipeline.build(steps, {"cats": "texts", "dogs": "texts"})
    assert caught.value.problems == [
        "more_dogs: adds_to: the loops of 'more_cats', 'more_dogs' read from each other; make them one loop"
    ]


def test_the_plan_shows_the_loop():
    line = (
        "    adds what it finds to known; repeated from there until nothing new is found, at most 8 rounds\n"
    )
    assert line in Pipeline.build(STEPS, None).plan()
