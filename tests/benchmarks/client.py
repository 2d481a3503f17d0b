"""What a request to a server costs this process: CPU milliseconds of engine=openai.

    python tests/benchmarks/client.py [REQUESTS]

A server in a process of its own answers at once, over connections that are kept, as vLLM's does. Each
image, a cut of a photograph of scikit-image, is in sixteen requests; to encode it, once, is part of what is
counted. 32 requests are in flight.
"""

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from interpreter import say
from PIL import Image as Pillow

from scalecap.engines.base import Choose, Generate, Image, Prompt
from scalecap.engines.openai import OpenAIEngine, open_openai
from scalecap.engines.settings import EngineSettings, ModelSettings

ABOUT = 16
"""Requests about an image."""


def serve() -> None:
    """Answers as the engine of `interpreter.py` does, and prints its port first."""
    others = [
        {"token": f"Word{at}", "logprob": math.log(0.001 / at), "bytes": [87, 111, 114, 100]}
        for at in range(1, 19)
    ]
    usage = {"prompt_tokens": 1500, "completion_tokens": 50, "total_tokens": 1550}
    shown = Image("shown", Pillow.new("RGB", (1, 1)))

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        content = body["messages"][-1]["content"]
        image = shown if isinstance(content, list) else None
        prompt = Prompt(content[-1]["text"] if isinstance(content, list) else content, image)
        reply = say(Choose(prompt) if "top_logprobs" in body else Generate(prompt))
        logprobs = None
        if isinstance(reply, float):
            top = [{"token": word, "logprob": math.log(p)} for word, p in (("yes", reply), ("no", 1 - reply))]
            logprobs = {"content": [{**top[0], "top_logprobs": [*top, *others]}]}
        message = {"role": "assistant", "content": str(reply)}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": logprobs}
        return {"id": "1", "object": "chat.completion", "model": "m", "usage": usage, "choices": [choice]}

    async def complete(request: web.Request) -> web.Response:
        return web.json_response(answer(await request.json()))

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def main() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.add_routes([web.post("/v1/chat/completions", complete), web.get("/v1/models", models)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


@contextmanager
def server() -> Iterator[str]:
    """Address of a server in a process of its own."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def images(side: int, count: int) -> list[Image]:
    """Cuts of one photograph, all different."""
    from skimage import data

    whole = Pillow.fromarray(data.astronaut()).resize((side + count, side), Pillow.Resampling.LANCZOS)
    return [Image.of(whole.crop((at, 0, at + side, side))) for at in range(count)]


async def cost(send: Callable[[int], Awaitable[Any]], requests: int) -> tuple[float, float]:
    """CPU milliseconds of this process, and real ones, a request."""
    free = asyncio.Semaphore(32)

    async def one(number: int) -> None:
        async with free:
            await send(number)

    cpu, begun = time.process_time(), time.monotonic()
    await asyncio.gather(*(one(number) for number in range(requests)))
    return (
        1000 * (time.process_time() - cpu) / requests,
        1000 * (time.monotonic() - begun) / requests,
    )


async def opened(url: str, jpeg_quality: int | None = None) -> OpenAIEngine:
    return await open_openai(ModelSettings(name="m"), EngineSettings(base_url=url, jpeg_quality=jpeg_quality))


async def measure(url: str, requests: int) -> None:
    engine, jpeg = await opened(url), await opened(url, 95)

    async def generate(number: int) -> None:
        await engine.generate(Generate(Prompt(f"Describe more details about the dog, {number}.")))

    async def choose(number: int) -> None:
        await engine.choose(Choose(Prompt(f"Is there a dog, {number}?")))

    def about(shown: list[Image], engine: OpenAIEngine) -> Callable[[int], Awaitable[Any]]:
        async def choose(number: int) -> None:
            await engine.choose(Choose(Prompt(f"Is there a dog, {number}?", shown[number // ABOUT])))

        return choose

    await cost(generate, 100)  # connections, imports
    print(f"{'':>42} {'CPU ms/request':>14} {'ms/request':>10}")
    for name, send in (("text", generate), ("a choice, of twenty log-probabilities", choose)):
        cpu, real = await cost(send, requests)
        print(f"{name:>42} {cpu:14.2f} {real:10.2f}", flush=True)
    for side, some in ((336, requests), (1024, requests // 4)):
        shown = images(side, -(-some // ABOUT))
        for form, sender in (("PNG", engine), ("JPEG", jpeg)):
            name = f"a choice about a {form} of {side} x {side}"
            print(
                f"{name:>42} {'{:14.2f} {:10.2f}'.format(*await cost(about(shown, sender), some))}",
                flush=True,
            )
    await jpeg.close()
    await engine.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        with server() as url:
            asyncio.run(measure(url, int(sys.argv[1]) if sys.argv[1:] else 2000))
