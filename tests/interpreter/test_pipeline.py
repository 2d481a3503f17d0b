"""A row on its way through the steps: columns, flags, errors, conditions, regions."""

import asyncio
import json
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pipeline_runs import DOG, DOG_AT, an_image, answer, go, row
from steps import STEPS, one

from scalecap.engines.base import Choose, EngineError, Generated, Image, PromptTooLong
from scalecap.rows import Row, RowError
from scalecap.stages import ModelClient, stage

pytestmark = pytest.mark.usefixtures("own_stages")


async def test_a_row_goes_through_all_steps_of_the_seed():
    (done,), counts = await go(STEPS, [row()])
    assert done.columns == {
        "id": "0",
        "init_caption": "A dog. A cat.",
        "sentences": ["A dog.", "A cat."],
        "golden": ["A dog."],
        "golden_scores": [
            {"text": "A dog.", "p_yes": 0.95, "kept": True, "mass": 1.0},
            {"text": "A cat.", "p_yes": 0.2, "kept": False, "mass": 1.0},
        ],
        "golden_refuted": ["A cat."],
        "raw_questions": DOG,
        "q_list": [DOG, DOG_AT],
        "raw_answers": ["It is brown.", "It is left."],
        "details": ["It is brown."],
        "details_scores": [
            {"text": "It is brown.", "p_yes": 0.95, "kept": True, "mass": 1.0},
            {"text": "It is left.", "p_yes": 0.8, "kept": False, "mass": 1.0},
        ],
        "details_refuted": ["It is left."],
        "final": "fused A dog.+It is brown.",
    }
    assert (done.error, done.flags, done.image_hash) == (None, {}, an_image().hash)
    assert list(done.columns)[:3] == ["id", "init_caption", "sentences"]
    assert {name: count.requests for name, count in counts.steps.items()} == {
        "init_caption": 1,
        "golden": 2,
        "raw_questions": 1,
        "raw_answers": 2,
        "details": 2,
        "final": 1,
    }


async def test_a_row_with_no_golden_sentence_makes_no_further_request():
    (done,), counts = await go(STEPS, [row()], lambda r: 0.1 if isinstance(r, Choose) else "A cat.")
    assert done.columns["golden"] == done.columns["q_list"] == done.columns["raw_answers"] == []
    assert done.columns["raw_questions"] == ""
    assert done.columns["final"] == "A cat."
    assert done.flags == {"final": ["fallback"]}
    assert counts.total.requests == 2
    assert counts.total.flags == {"fallback": 1}


async def test_flags_are_sorted_and_unique():
    def script(request):
        if isinstance(request, Choose):
            return answer(request)
        if request.prompt.text == DOG:
            return Generated("and so on " * 40, "stop")
        if request.prompt.text == DOG_AT:
            return Generated("cut", "length")
        return Generated(answer(request), "length" if request.prompt.text == "Caption." else "stop")

    (done,), counts = await go(STEPS, [row()], script)
    assert done.flags == {"init_caption": ["truncated"], "raw_answers": ["looping", "truncated"]}
    assert counts.total.retried == 3


def fail_at(text: str, error: Exception) -> Any:
    def script(request):
        if request.prompt.text == text:
            raise error
        return answer(request)

    return script


@pytest.mark.parametrize(
    ("text", "error", "record", "done_until"),
    [
        ("Caption.", EngineError("no"), ("init_caption", "engine", "no"), None),
        (
            "True: A cat.",
            PromptTooLong(9, 8),
            ("golden", "prompt_too_long", "the prompt has 9 tokens and the model's context is 8"),
            "sentences",
        ),
        (DOG, ValueError("odd"), ("raw_answers", "ValueError", "odd"), "q_list"),
    ],
)
async def test_a_failure_stays_in_its_row_with_the_columns_done(text, error, record, done_until):
    def script(request):
        return fail_at(text, error)(request) if not spared(request) else answer(request)

    def spared(request):
        return request.prompt.image is not None and request.prompt.image.hash == "1"

    (failed, fine), _ = await go(STEPS, [row(0), row(1)], script)
    assert failed.error == dict(zip(("step", "kind", "message"), record, strict=True))
    assert list(failed.columns)[-1] == (done_until or "id")
    assert fine.error is None
    assert fine.columns["final"] == "fused A dog.+It is brown."


async def test_steps_that_do_not_need_the_failed_one_go_on_and_the_first_in_order_is_reported():
    steps = {
        "a": {"stage": "generate", "prompt": "slow", "image": "image"},
        "b": {"stage": "generate", "prompt": "fast", "image": "image"},
        "c": {"stage": "generate", "prompt": "Caption.", "image": "image"},
        "d": {"stage": "split_sentences", "text": "c"},
        "e": {"stage": "split_sentences", "text": "b"},
    }

    async def script(request):
        if request.prompt.text == "slow":
            await asyncio.sleep(0.02)
            raise EngineError("slow")
        if request.prompt.text == "fast":
            raise EngineError("fast")
        return "A dog."

    (done,), _ = await go(steps, [row()], script)
    assert done.columns == {"id": "0", "c": "A dog.", "d": ["A dog."]}
    assert done.error == {"step": "a", "kind": "engine", "message": "slow"}


def bad_image(error: Exception) -> Any:
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("bad", "record"),
    [
        (
            Row(0, {"id": "0"}, an_image, RowError("json", "line 3 is no JSON")),
            {"step": None, "kind": "json", "message": "line 3 is no JSON"},
        ),
        (
            Row(0, {"id": "0"}, bad_image(RowError("missing_file", "a.png is not there"))),
            {"step": "image", "kind": "missing_file", "message": "a.png is not there"},
        ),
        (
            Row(0, {"id": "0"}, bad_image(OSError("odd"))),
            {"step": "image", "kind": "OSError", "message": "odd"},
        ),
    ],
)
async def test_a_row_that_cannot_be_read_makes_no_request(bad, record):
    (done, fine), counts = await go(STEPS, [bad, row(1)])
    assert (done.columns, done.error, done.flags) == ({"id": "0"}, record, {})
    assert fine.error is None
    assert counts.steps["init_caption"].requests == 1


async def test_a_column_of_a_row_is_never_taken_for_that_of_a_step():
    steps = one({"stage": "generate", "prompt": "Caption.", "image": "image"}, name="draft")
    (first, second), _ = await go(steps, [row(), row(1, draft="mine", note="n")])
    assert (first.error, first.columns["draft"]) == (None, "A dog. A cat.")
    message = "the row has a column 'draft', as the step 'draft' writes it; rename one of them"
    assert second.error == {"step": None, "kind": "taken_column", "message": message}
    assert second.columns == {"id": "1", "note": "n"}


async def test_a_column_that_only_some_rows_have():
    steps = one({"stage": "split_sentences", "text": "note"})
    (without, with_it), _ = await go(steps, [row(0), row(1, note="A dog. A cat.")])
    assert without.error == {"step": "x", "kind": "missing_column", "message": "the row has no column 'note'"}
    assert with_it.columns["x"] == ["A dog.", "A cat."]


async def test_a_column_that_is_null_in_some_rows():
    steps = one({"stage": "split_sentences", "text": "note"})
    (without, _), _ = await go(steps, [row(0, note=None), row(1, note="A dog.")])
    message = "column 'note' is null in this row, expected a text"
    assert without.error == {"step": "x", "kind": "null_column", "message": message}
    steps = one({"stage": "deduplicate", "texts": ["note", "tags"]})
    (dog,), _ = await go(steps, [row(0, note=None, tags=["A dog."])])
    assert dog.columns["x"] == ["A dog."]


@pytest.mark.parametrize("texts", ["A dog.", ["A dog.", None], {"a": "A dog."}])
async def test_a_column_of_another_type_in_some_rows(texts):
    steps = one({"stage": "split_each", "texts": "notes"})
    (done, other), _ = await go(steps, [row(0, notes=["A dog."]), row(1, notes=texts)])
    assert done.columns["x"] == ["A dog."]
    message = f"column 'notes' is {texts!r}, expected a list of texts"
    assert other.error == {"step": "x", "kind": "TypeError", "message": message}


async def test_the_image_is_opened_once_a_row_off_the_loop_and_only_if_read():
    threads = []

    def opening():
        threads.append(threading.current_thread())
        return an_image()

    await go(STEPS, [Row(0, {}, opening)])
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    await go(one({"stage": "split_sentences", "text": "id"}), [Row(0, {"id": ""}, opening)])
    assert len(threads) == 1


async def test_the_same_rows_give_the_same_requests_whatever_the_order():
    def script_into(seen):
        async def script(request):
            await asyncio.sleep(0.001 * (len(seen) % 3))
            seen.add((request.prompt.text, getattr(request, "seed", None)))
            return answer(request)

        return script

    one_way, other_way = set(), set()
    first, _ = await go(STEPS, [row(0), row(1), row(2)], script_into(one_way), in_flight=1)
    second, _ = await go(STEPS, [row(2), row(1), row(0)], script_into(other_way), in_flight=3)
    assert one_way == other_way
    assert [(each.columns, each.error, each.flags) for each in first] == [
        (each.columns, each.error, each.flags) for each in second
    ]


async def test_a_stage_of_the_wrong_shape_fails_its_row():
    @stage(name="t/short", side=["more"])
    class Short:
        async def __call__(self, client: ModelClient, *, text: str) -> tuple[str, str]:
            return ("only one",)  # type: ignore[return-value]

    (done,), _ = await go(one({"stage": "t/short", "text": "id"}), [row()])
    assert done.error is not None
    assert (done.error["step"], done.error["kind"]) == ("x", "TypeError")
    assert "t/short returned ('only one',), expected a tuple of 2" in done.error["message"]


@pytest.mark.parametrize("given", [3, ["a"], {"a": 1}])
async def test_a_stage_that_returns_another_kind_is_blamed_and_not_the_next(given: Any):
    @stage(name=f"t/{type(given).__name__}")
    def odd(text: str) -> str:
        return given  # type: ignore[no-any-return]

    (done,), _ = await go(one({"stage": f"t/{type(given).__name__}", "text": "id"}), [row()])
    assert done.error is not None
    assert done.error["message"].startswith(f"t/{type(given).__name__} returned {given!r}, expected a text")


async def test_a_stage_that_is_cancelled_from_within_fails_its_row():
    @stage(name="t/waits")
    async def waits(text: str) -> str:
        asyncio.get_running_loop().call_soon((other := asyncio.ensure_future(asyncio.sleep(60))).cancel)
        await other
        return text

    steps = one({"stage": "t/waits", "text": "id"}) | {"y": {"stage": "split_sentences", "text": "x"}}
    (done,), _ = await go(steps, [row()])
    message = "what t/waits waited for was cancelled"
    assert done.error == {"step": "x", "kind": "RuntimeError", "message": message}
    assert list(done.columns) == ["id"]


async def test_numpy_numbers_are_numbers():
    @stage(name="t/count")
    def count(text: str) -> int:
        return np.int64(len(text))  # type: ignore[return-value]

    (done,), _ = await go(one({"stage": "t/count", "text": "id"}), [row()])
    assert (done.error, done.columns["x"]) == (None, 1)


async def test_a_step_runs_for_the_rows_for_which_its_condition_holds():
    steps = {
        "draft": {"stage": "generate", "prompt": "Caption.", "image": "image", "when": "n > 1"},
        "sentences": {"stage": "split_sentences", "text": "draft"},
        "golden": {
            "stage": "verify",
            "texts": "sentences",
            "prompt": "True: {{ text }}",
            "when": "sentences | length > 1",
        },
        "notes": {"stage": "split_sentences", "text": "note", "when": "golden", "otherwise": "tags"},
        "kept": {"stage": "split_sentences", "text": "note", "when": "golden_scores | selectattr('kept')"},
    }
    rows = [row(n, n=n, note="A.", tags=["x"]) for n in (2, 1)] + [row(3, n="many", note="A.", tags=["x"])]
    (skipped, ran, failed), counts = await go(steps, rows)
    assert ran.columns["golden"] == ["A dog."]
    assert ran.columns["notes"] == ran.columns["kept"] == ["A."]
    assert ran.flags == {}
    assert {
        name: value for name, value in skipped.columns.items() if name not in ("id", "n", "note", "tags")
    } == {
        "draft": "",
        "sentences": [],
        "golden": [],
        "golden_scores": [],
        "golden_refuted": [],
        "notes": ["x"],
        "kept": [],
    }
    assert skipped.flags == {name: ["skipped"] for name in ("draft", "golden", "notes", "kept")}
    assert (failed.error["step"], failed.error["kind"]) == ("draft", "PromptError")
    assert "'n > 1': '>' not supported" in failed.error["message"]
    assert counts.total.flags == {"skipped": 4}
    assert counts.total.requests == 3


async def test_a_list_that_was_skipped_is_empty_for_what_reads_it():
    step = {"stage": "generate", "prompt": "Ask: {{ s }}", "each": {"s": "tags"}, "parse": "json"}
    steps = {
        "boxes": step | {"when": "false"},
        "views": {"stage": "crop", "boxes": "boxes"},
        "described": {"stage": "generate", "prompt": "Caption.", "views": "views", "parse": "lines"},
    }
    (done,), counts = await go(steps, [row(tags=["a"])])
    assert done.error is None
    assert [done.columns[name] for name in ("boxes", "views", "described", "described_about")] == [
        [],
        [],
        [],
        [],
    ]
    assert counts.total.requests == 0


async def test_parts_of_the_image_are_shown_and_written_as_their_boxes():
    steps = {
        "parts": {"stage": "tiles", "rows": 1, "columns": 2, "overlap": 0.0},
        "described": {"stage": "generate", "prompt": "Caption.", "views": "parts"},
        "none": {"stage": "crop", "boxes": "given"},
        "kept": {"stage": "verify", "texts": "described", "views": "none", "prompt": "{{ text }}"},
    }
    pixels = Pillow.new("RGB", (4, 2))
    pixels.paste("red", (2, 0, 4, 2))
    seen = []

    def script(request):
        seen.append(request.prompt.image)
        return 0.9 if isinstance(request, Choose) else f"seen {request.prompt.image.hash[:4]}"

    given = [None, [900, 900, 1100, 1100]]
    one = Row(0, {"given": given}, lambda: Image.of(pixels))
    (done,), _ = await go(steps, [one], script)
    assert done.error is None
    assert done.columns["parts"] == [{"box": [x, 0, x + 2, 2], "of": [4, 2]} for x in (0, 2)]
    assert done.columns["none"] == [None, None]
    assert len(set(done.columns["described"])) == 2
    assert [image.pixels.size for image in seen] == [(2, 2), (2, 2), (4, 2), (4, 2)]
    assert done.flags == {"none": ["outside"]}
    json.dumps(done.columns)


async def test_no_rows_and_no_steps():
    assert (await go(STEPS, []))[0] == []
    (done,), _ = await go({}, [row()])
    assert (done.columns, done.error) == ({"id": "0"}, None)
