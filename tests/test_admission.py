"""Which rows are in flight: no more images than fit the KV cache, and rows that show none beside them."""

import asyncio
from typing import Any

import pytest
from pipeline_runs import an_image, row
from runs import roles

from scalecap.engines.base import Choose, EngineError, Generated, Image, Request, Sampling, Usage
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.rows import Row

TOKENS = 100
"""Of each prompt with an image."""
STEPS: dict[str, dict[str, Any]] = {
    "caption": {"stage": "generate", "prompt": "Caption.", "image": "image"},
    "sentences": {"stage": "split_sentences", "text": "caption"},
    "golden": {"stage": "verify", "texts": "sentences", "prompt": "True: {{ text }}"},
    "questions": {
        "stage": "generate",
        "prompt": "Ask: {{ id }} {{ s }}",
        "variables": {"id": "id", "s": "golden"},
    },
    "answers": {
        "stage": "generate",
        "prompt": "Answer: {{ question }}",
        "image": "image",
        "variables": {"question": "questions"},
    },
    "fused": {
        "stage": "generate",
        "prompt": "Fuse: {{ id }} {{ a }}",
        "variables": {"id": "id", "a": "answers"},
    },
}
"""The last but one is the last with the image."""


def say(request: Request) -> str | float:
    if isinstance(request, Choose):
        return 0.9
    return "A dog. A cat." if request.prompt.text == "Caption." else request.prompt.text


class World:
    """Steps on an engine whose KV cache holds `images` images; `most` is the most it held at once."""

    def __init__(
        self, images: int, steps: dict[str, Any] = STEPS, script: Any = say, budget: int | None = None
    ) -> None:
        self.script = script
        engines = roles(self._answer, concurrency=200, kv_tokens=2 * TOKENS * images)
        self.dispatcher = Dispatcher(engines, None, Sampling(), 0, RunUsage(), 0.0)
        self.pipeline = Pipeline.build(steps, None, budget=budget)
        self.done: list[Finished] = []
        self.stop = asyncio.Event()
        self.held: set[str] = set()
        """Images between their first request, and their row's fusion or end."""
        self.most = 0

    async def _answer(self, request: Request) -> Any:
        text, image = request.prompt.text, request.prompt.image
        if image:
            self.held.add(image.hash)
            self.most = max(self.most, len(self.held))
        elif text.startswith("Fuse: "):
            self.held.discard(text.split()[1])
        await asyncio.sleep(0)
        reply = self.script(request)
        if asyncio.iscoroutine(reply):
            reply = await reply
        if isinstance(reply, str) and image:
            return Generated(reply, "stop", Usage(TOKENS, None, 1))
        return reply

    async def run(self, rows: Any, *, known: bool = True) -> list[Finished]:
        """The rows that ended, in their order; TimeoutError where they wait for each other.

        `known`: an earlier image has shown how long prompts are.
        """

        def on_row(finished: Finished) -> None:
            self.done.append(finished)
            self.held.discard(finished.row.id)

        async with asyncio.timeout(60):
            if known:
                await self.dispatcher.client("first", lambda flag: None).generate(
                    "First.", image=an_image(-1)
                )
                self.held, self.most = set(), 0
            await self.pipeline.run(
                rows, self.dispatcher, in_flight=self.dispatcher.max_rows, on_row=on_row, stop=self.stop
            )
        assert self.dispatcher.rows_without_images == 0
        return sorted(self.done, key=lambda each: each.row.index)


@pytest.mark.parametrize("images", [1, 3, 7])
async def test_no_more_images_are_in_flight_than_the_cache_has_room_for(images: int):
    full = asyncio.Event()

    async def script(request: Request) -> Any:
        if request.prompt.text == "Caption.":
            if len(world.held) == images:
                full.set()
            await full.wait()  # rows are read in a thread, which may be slow
        return say(request)

    world = World(images, script=script)
    done = await world.run(row(index) for index in range(40))
    assert [each.error for each in done] == [None] * 40
    assert world.most == images


@pytest.mark.parametrize("images", [1, 3])
async def test_a_row_whose_remaining_steps_show_no_image_holds_no_place(images: int):
    """All rows meet in their last step."""
    together = asyncio.Barrier(20)

    async def script(request: Request) -> Any:
        if request.prompt.text.startswith("Fuse: "):
            await together.wait()
        return say(request)

    world = World(images, script=script)
    done = await world.run(row(index) for index in range(20))
    assert len(done) == 20
    assert world.most <= images


async def test_rows_without_an_image_are_as_many_as_keep_the_engine_busy():
    together = asyncio.Barrier(100)  # half of the engine's concurrency

    async def script(request: Request) -> Any:
        await together.wait()
        return say(request)

    world = World(1, {"fused": STEPS["fused"] | {"variables": {"id": "id", "a": "id"}}}, script)
    assert len(await world.run((row(index) for index in range(100)), known=False)) == 100


async def test_text_steps_between_two_with_the_image_hold_the_place():
    """The image is shown again, so its tokens are to stay."""
    requested = asyncio.Event()

    async def script(request: Request) -> Any:
        if request.prompt.text.startswith("Ask: 0"):
            assert world.dispatcher.max_rows() == 1
            requested.set()
        return say(request)

    world = World(1, script=script)
    await world.run(row(index) for index in range(2))
    assert requested.is_set()
    assert world.most == 1


@pytest.mark.parametrize(
    "change",
    [
        {"answers": STEPS["answers"] | {"when": "id | int % 2"}},
        {"answers": STEPS["answers"] | {"when": "false"}},
        {"golden": STEPS["golden"] | {"when": "false"}, "answers": STEPS["answers"] | {"when": "golden"}},
        {"answers": {**STEPS["answers"], "variables": None, "each": {"question": "none"}}},
    ],
    ids=["some rows", "all rows", "two steps", "no items"],
)
async def test_skipped_steps_give_the_place_back(change: dict[str, Any]):
    steps = {
        name: {k: v for k, v in step.items() if v is not None} for name, step in (STEPS | change).items()
    }
    world = World(1, steps)
    done = await world.run(row(index, none=[]) for index in range(10))
    assert [each.error for each in done] == [None] * 10
    assert world.most == 1


@pytest.mark.parametrize("budget", [1, 2, 4, 5, 6])
async def test_items_skipped_by_a_budget_give_the_place_back(budget: int):
    limited = STEPS["golden"] | {"limit": "budget_left"}
    world = World(1, STEPS | {"golden": limited}, budget=budget)
    done = await world.run(row(index) for index in range(10))
    assert len(done) == 10
    assert {each.usage.requests for each in done} <= set(range(budget + 1))
    assert world.most == 1


@pytest.mark.parametrize("text", ["Caption.", "True: A dog.", "Answer: Ask: 3", "Fuse: 3"])
async def test_a_row_that_fails_gives_its_place_back(text: str):
    def script(request: Request) -> Any:
        if request.prompt.text.startswith(text):
            raise EngineError("no")
        return say(request)

    world = World(1, script=script)
    done = await world.run(row(index) for index in range(10))
    assert world.most == 1
    failed = [each.row.index for each in done if each.error]
    assert failed == ([3] if text.endswith("3") else list(range(10)))


async def test_an_image_that_cannot_be_opened_takes_no_place():
    def broken() -> Image:
        raise OSError("broken")

    world = World(1)
    rows = [Row(index, {"id": str(index)}, broken) for index in range(5)] + [row(5)]
    done = await world.run(rows)
    assert [each.error is None for each in done] == [False] * 5 + [True]


async def test_after_a_stop_no_row_takes_the_place_that_another_left():
    async def script(request: Request) -> Any:
        if request.prompt.text.startswith("Fuse: 0"):
            world.stop.set()
            await asyncio.sleep(0.05)
        return say(request)

    world = World(1, script=script)
    done = await world.run(row(index) for index in range(50))
    assert done[0].row.index == 0
    assert len(done) <= 2
    assert all(each.columns["fused"] for each in done)
