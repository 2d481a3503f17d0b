"""The embedded model with replies cached across the pipelines that are compared."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from scalecap.engines import embedded_model, open_engine
from scalecap.engines.base import Choose, Chosen, Engine, Generate, Generated, Prompt, Reply, Score, Scored
from scalecap.engines.compat import patch_libraries
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.interpreter.cache import Cache, key

T = TypeVar("T", bound=Reply)


class CachedEngine:
    """An engine with a reply cache on disk, shared by all pipelines.

    A cached reply is accounted for as if it had been computed. From the second request about an image on,
    prompt tokens up to the end of the image count as cached, as with a sufficiently large prefix cache;
    `reset` starts another pipeline.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._cache = engine, Cache(folder)
        self.identity, self.context_length = engine.identity, engine.context_length
        self.concurrency, self.kv_tokens = engine.concurrency, engine.kv_tokens
        self._prefix_lengths = _prefix_lengths()
        self._seen: set[str] = set()

    @classmethod
    async def open(cls, folder: Path) -> "CachedEngine":
        """Opens the model in float32 on the transformers engine."""
        model = ModelSettings(name="scenes", dtype="float32")
        return cls(await open_engine(model, EngineSettings(name="transformers")), folder)

    def reset(self) -> None:
        """Empties the simulated prefix cache."""
        self._seen.clear()

    async def generate(self, request: Generate) -> Generated:
        return await self._reply(request, self._engine.generate)

    async def choose(self, request: Choose) -> Chosen:
        return await self._reply(request, self._engine.choose)

    async def score(self, request: Score) -> Scored:
        return await self._reply(request, self._engine.score)

    async def _reply(self, request: Any, compute: Callable[[Any], Awaitable[T]]) -> T:
        cached = self._cached(request.prompt)
        name = key(self.identity, request)
        reply = cast("T | None", await self._cache.get(name))
        if reply is None:
            reply = await compute(request)
            await self._cache.put(name, reply)
        return replace(reply, usage=reply.usage._replace(cached_tokens=cached))

    def _cached(self, prompt: Prompt) -> int:
        shown = prompt.image.hash if prompt.image else ""
        if shown in self._seen:
            return self._prefix_lengths[bool(shown)]
        self._seen.add(shown)
        return 0

    async def close(self) -> None:
        await self._engine.close()
        self._cache.close()


def _prefix_lengths() -> tuple[int, int]:
    """Lengths in tokens of the prefix shared by prompts without an image, and by those with the same one."""
    patch_libraries()
    from transformers import AutoTokenizer

    from scalecap.scenes.architecture import IMAGE_TOKENS

    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model())
    system = {"role": "system", "content": Prompt("").system}
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\0"}]}
    text = tokenizer.apply_chat_template([system, user], tokenize=False)
    before, picture, _ = text.partition("<|vision_start|><|image_pad|><|vision_end|>")
    start = len(tokenizer(before)["input_ids"])
    return start, start + len(tokenizer(picture)["input_ids"]) - 1 + IMAGE_TOKENS
