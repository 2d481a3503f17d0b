"""How many rows to have in flight: an engine in virtual time (`simulated.py`), over sizes of its KV cache.

    python tests/benchmarks/admission.py [--cases 16:1036:8 …] [--blocks 128 16] [--sentences 3] [--objects 3]

A case is a number of images, the tokens of each, and how many the cache holds with 500 tokens of text each.
The ways:

* ours: `Pipeline.run`, rows in flight as a run chooses them;
* to the end: a row keeps its image's place to its end, its last steps without the image too;
* third, two thirds: of the cache for images, in place of half;
* priority: the engine takes waiting requests of the rows that began first, not those that came first;
* bare: the requests of ours, all known in advance, given to the engine at once.

Nothing here depends on the machine. What the engine itself takes is measured by `throughput.py`.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import hydra
from PIL import Image as Pillow
from simulated import COSTS, Inline, Shape, Simulated
from throughput import Work

from scalecap.config.compose import from_config
from scalecap.config.settings import CONF, Settings
from scalecap.engines.base import Choose, Generate, Image, Request
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.rows import Row

WAYS = ("ours", "to the end", "third", "two thirds", "priority", "bare")


class Case(NamedTuple):
    """Images, the tokens of each, and how many the cache holds."""

    images: int
    tokens: int
    room: int

    @classmethod
    def read(cls, text: str) -> "Case":
        return cls(*map(int, text.split(":")))


CASES = (Case(16, 1036, 8), Case(32, 1728, 5), Case(48, 192, 12), Case(96, 192, 24))


def composed() -> Settings:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["prompts=seed", "model=own", "model.vlm.name=none", "output=none", "sampling=greedy"]
        return from_config(hydra.compose("config", words))


def rows(images: int) -> Iterator[Row]:
    """Images known by their numbers."""
    pixels = Pillow.new("RGB", (1, 1))
    for index in range(images):
        yield Row(index, {"image": str(index)}, lambda index=index: Image(f"{index:012x}", pixels))


def age(request: Request) -> int:
    """The place of the request's row; those without an image go first."""
    return int(request.prompt.image.hash, 16) if request.prompt.image else -1


async def ours(engine: Simulated, settings: Settings, images: int) -> list[Request]:
    """Runs the pipeline over the images; the requests in the order in which they were made."""
    dispatcher = Dispatcher({"vlm": engine, "llm": engine}, None, settings.sampling, 0, RunUsage(), 0.0)
    pipeline = Pipeline.build(settings.pipeline.steps, {"image": "text"}, sampling=settings.sampling)
    requests: list[Request] = []
    done: list[Finished] = []

    def recording(send: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def record(request: Any) -> Any:
            requests.append(request)
            return await send(request)

        return record

    with (
        patch.object(engine, "generate", recording(engine.generate)),
        patch.object(engine, "choose", recording(engine.choose)),
        patch("scalecap.interpreter.pipeline.DaemonPool", Inline),
    ):
        await pipeline.run(rows(images), dispatcher, in_flight=dispatcher.max_rows, on_row=done.append)
    assert len(done) == images
    assert not any(each.error for each in done), done[0].error
    return requests


async def bare(engine: Simulated, requests: list[Request]) -> None:
    ways = {Generate: engine.generate, Choose: engine.choose}
    await asyncio.gather(*(ways[type(request)](request) for request in requests))


def measure(
    work: Work, settings: Settings, case: Case, block: int, ways: Sequence[str] = WAYS
) -> dict[str, Simulated]:
    """The engine after each way."""
    changes = {
        "to the end": patch("scalecap.interpreter.step.Step.shows_image", property(lambda step: True)),
        "third": patch("scalecap.interpreter.dispatch.KV_SHARE_OF_IMAGES", 1 / 3),
        "two thirds": patch("scalecap.interpreter.dispatch.KV_SHARE_OF_IMAGES", 2 / 3),
    }
    requests: list[Request] = []
    found = {}
    for way in ways:
        found[way] = engine = Simulated(
            work.say,
            Shape(case.tokens),
            blocks=1 + case.room * (case.tokens + 500) // block,
            block=block,
            priority=age if way == "priority" else None,
        )
        with changes.get(way, nullcontext()):
            if way == "bare":
                asyncio.run(bare(engine, requests))
            else:
                made = asyncio.run(ours(engine, settings, case.images))
                requests = requests or made
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=Case.read, default=CASES, help="images:tokens:room")
    parser.add_argument("--blocks", nargs="+", type=int, default=[128, 16], help="tokens in a block")
    parser.add_argument("--sentences", type=int, default=3, help="of a first caption")
    parser.add_argument("--objects", type=int, default=3, help="with questions, in an image")
    words = parser.parse_args()
    work, settings = Work(images=0, sentences=words.sentences, objects=words.objects), composed()
    print(f"| | {' | '.join(WAYS)} |\n{'| --- ' * (1 + len(WAYS))}|")
    for case in words.cases:
        for block in words.blocks:
            found = measure(work, settings, case, block)
            title = f"{case.room} of {case.images} images, {case.tokens} tokens, blocks of {block}"
            print(f"| **{title}** {'| ' * len(WAYS)}|")
            for name, cells in lines(found, case.images).items():
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


def lines(found: Mapping[str, Simulated], images: int) -> dict[str, list[str]]:
    """The cells of each way, by line of the table."""
    cells = {
        "prompt tokens computed an image": [f"{each.computed / images:.0f}" for each in found.values()],
        "requests in a step": [f"{each.batches / each.steps:.1f}" for each in found.values()],
    }
    for name, costs in COSTS.items():
        own = found["ours"].seconds(costs)
        cells[f"time / ours, {name}"] = [f"{each.seconds(costs) / own:.2f}" for each in found.values()]
    return cells


if __name__ == "__main__":
    main()
