"""Requests sent to a server and how its responses are read; one test with vLLM's own server."""

import asyncio
import base64
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from server import Answer, Server, completion, connect, error

from scalecap.engines.base import (
    Choose,
    EngineError,
    Generate,
    Image,
    Prompt,
    PromptTooLong,
    Sampling,
    Score,
    Unsupported,
)
from scalecap.engines.settings import EngineSettings, ModelSettings

pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')

from scalecap.engines.openai import open_openai

IMAGE = Image("h", Pillow.new("RGB", (4, 4)))
GREEDY = Sampling(temperature=0, max_tokens=12)
MakeImage = Callable[[int], Image]


async def test_reply_with_image(fake: Server) -> None:
    fake.answers = [(200, completion("A cat.", "length"))]
    engine = await connect(fake, model=ModelSettings(name="m", max_pixels=50))
    pixels = Pillow.effect_noise((20, 10), 90).convert("RGB")
    prompt = Prompt("What is it?", Image("h", pixels), "Be brief.")
    reply = await engine.generate(
        Generate(prompt, Sampling(repetition_penalty=1.05, max_tokens=2), seed=2**64 + 5)
    )
    fake.answers = [(200, completion("A cat.", "length"))]
    short = await engine.generate(Generate(prompt))
    assert short.finish == "context"  # the context had no room for max_tokens
    assert (reply.text, reply.finish, reply.usage.prompt_tokens) == ("A cat.", "length", 7)
    request = fake.requests[0]
    assert request["seed"] == 5
    assert request["repetition_penalty"] == 1.05
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}
    image, text = request["messages"][1]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    sent = Pillow.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].split(",")[1])))
    assert (sent.format, sent.size) == ("PNG", (10, 5))


async def test_a_schema_is_sent(fake: Server) -> None:
    engine = await connect(fake)
    await engine.generate(Generate(Prompt("?")))
    assert "response_format" not in fake.requests[-1]
    await engine.generate(Generate(Prompt("?"), schema='{"type": "object"}'))
    wanted = {"name": "reply", "schema": {"type": "object"}}
    assert fake.requests[-1]["response_format"] == {"type": "json_schema", "json_schema": wanted}


async def test_half_a_character_is_replaced(fake: Server) -> None:
    fake.answers = [(200, completion("A \ud83d cat."))]
    engine = await connect(fake)
    assert (await engine.generate(Generate(Prompt("?")))).text == "A ? cat."


async def test_choice(fake: Server) -> None:
    fake.answers = [(200, completion("Yes", top={"Yes": 0.5, " no": 0.1, "yes": 0.25, "Maybe": 0.1}))]
    engine = await connect(fake)
    chosen = await engine.choose(Choose(Prompt("?")))
    assert chosen.probabilities == pytest.approx((0.75 / 0.85, 0.1 / 0.85))
    assert chosen.mass == pytest.approx(0.85)
    assert (fake.requests[0]["max_tokens"], fake.requests[0]["top_logprobs"]) == (1, 20)
    fake.answers = [(200, completion("Hm", top={"Hm": 1.0}))]
    neither = await engine.choose(Choose(Prompt("?")))
    assert (neither.probabilities, neither.mass) == ((0, 0), 0)


@pytest.mark.parametrize(
    "refusal",
    [
        (200, completion("Yes")),
        (200, completion("Yes") | {"choices": [{"message": {"content": "Yes"}, "logprobs": []}]}),
        (400, error("logprobs are not supported")),
        (403, error("You are not allowed to request logprobs from this model")),
    ],
)
async def test_choice_without_logprobs(
    fake: Server, refusal: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["\nYes.", "<think>\n\n</think>No, his eyes are closed", "N/A", "<think>Yes, if"]
    fake.probe = refusal
    fake.answers = [(200, completion(word)) for word in words]
    with caplog.at_level(logging.WARNING):
        engine = await connect(fake)
    chosen = [await engine.choose(Choose(Prompt("?"), ("yes", "no", "n/a"))) for _ in words]
    assert [(reply.probabilities, reply.mass) for reply in chosen] == [
        ((1, 0, 0), 1),
        ((0, 1, 0), 1),
        ((0, 0, 1), 1),
        ((0, 0, 0), 0),
    ]
    assert len([record for record in caplog.records if "log-probabilities" in record.message]) == 1
    assert engine.identity.endswith("choices=text")


async def test_what_is_sent_beyond_the_protocol(fake: Server) -> None:
    fake.answers = [(200, completion("Yes", top={"Yes": 1.0}))]
    thinking = {"enable_thinking": False}
    model = ModelSettings(name="m", chat_template_kwargs=thinking)
    body = {"top_k": 20, "provider": {"order": ["a"]}}
    engine = await connect(fake, model=model, extra_body=body)
    await engine.generate(Generate(Prompt("?"), Sampling(repetition_penalty=1.05)))
    await engine.choose(Choose(Prompt("?")))
    for request in fake.requests:
        assert request["chat_template_kwargs"] == thinking
        assert (request["top_k"], request["provider"]) == (20, {"order": ["a"]})
    assert [request.get("repetition_penalty") for request in fake.requests] == [1.05, None]


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "A cat.", "reasoning_content": "Or a dog?"}, "A cat.", "Or a dog?"),
        ({"content": "A cat.", "reasoning": "Or a dog?"}, "A cat.", "Or a dog?"),
        ({"content": "<think>Or a dog?</think>\nA cat."}, "A cat.", "Or a dog?"),
        ({"content": "Or a dog?</think>\nA cat."}, "A cat.", "Or a dog?"),
        ({"content": None, "reasoning_content": "Or", "reasoning": "Or"}, "", "Or"),
        ({"content": "A cat.", "reasoning": None, "reasoning_content": ""}, "A cat.", ""),
        ({"content": "A cat.", "reasoning": {"steps": 3}}, "A cat.", ""),
    ],
)
async def test_reasoning_of_a_server(
    fake: Server, caplog: pytest.LogCaptureFixture, message: Any, text: str, reasoning: str
) -> None:
    body = completion("")
    body["choices"][0]["message"] = {"role": "assistant", **message}
    body["usage"]["completion_tokens_details"] = {"reasoning_tokens": 1}
    fake.answers = [(200, body)]
    engine = await connect(fake)
    with caplog.at_level(logging.WARNING):
        replies = [await engine.generate(Generate(Prompt("?"))) for _ in range(2)]
    assert [(reply.text, reply.reasoning) for reply in replies] == [(text, reasoning)] * 2
    assert replies[0].usage.reasoning_tokens == 1
    warned = [record.getMessage() for record in caplog.records if "reasons before" in record.message]
    assert len(warned) == (1 if reasoning else 0)
    assert all("chat_template_kwargs.enable_thinking=false" in line for line in warned)


async def test_score_needs_more_than_the_protocol(fake: Server) -> None:
    engine = await connect(fake)
    with pytest.raises(Unsupported, match="engine=vllm"):
        await engine.score(Score(Prompt("?"), "A cat."))
    fake.answers = [(400, error("Unknown parameter: 'prompt_logprobs'."))]
    with pytest.raises(Unsupported, match="refuses the request: Unknown parameter"):
        await engine.score(Score(Prompt("?"), "A cat."))
    fake.answers = [(418, error("Later."))]
    with pytest.raises(EngineError, match="Later") as failed:
        await engine.score(Score(Prompt("?"), "A cat."))
    assert not isinstance(failed.value, Unsupported)


async def test_prompt_too_long(fake: Server) -> None:
    message = (
        "This model's maximum context length is 100 tokens. However, you requested {} tokens "
        "({} in the messages, {} in the completion)."
    )
    fake.answers = [(400, error(message.format(590, 90, 500))), (200, completion("A cat."))]
    engine = await connect(fake)
    assert (await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=500)))).text == "A cat."
    assert fake.requests[1]["max_tokens"] == 10
    fake.answers = [(400, error(message.format(700, 200, 500)))]
    with pytest.raises(PromptTooLong) as caught:
        await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=500)))
    assert (caught.value.tokens, caught.value.limit) == (200, 100)


@pytest.mark.slow
async def test_agrees_with_transformers_behind_a_real_server(
    served: str, embedded: Path, an_image: MakeImage
) -> None:
    """Same weights in float32: the same greedy texts, the same probabilities up to rounding."""
    from scalecap.engines.transformers import open_transformers

    ours = await open_openai(ModelSettings(name="scenes"), EngineSettings(base_url=served))
    theirs = await open_transformers(ModelSettings(name=str(embedded)), EngineSettings())
    assert ours.context_length == theirs.context_length
    prompts = [
        Prompt("Is it true? There is a cat. Answer yes or no.", an_image(1)),
        Prompt("Describe the picture.", an_image(1)),
        Prompt("Is it a cat? " * 20, an_image(2)),
        Prompt("List the things in: There is a dog."),
    ]
    for prompt in prompts:
        reply, expected = [await engine.generate(Generate(prompt, GREEDY)) for engine in (ours, theirs)]
        assert reply.text == expected.text
        assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
    chosen, expected_choice = [await engine.choose(Choose(prompts[0])) for engine in (ours, theirs)]
    assert chosen.probabilities == pytest.approx(expected_choice.probabilities, abs=1e-3)
    assert chosen.mass > 0.5
    text = "There is a cät on the left."
    scored, expected_score = [await engine.score(Score(prompts[1], text)) for engine in (ours, theirs)]
    assert [token[:2] for token in scored.tokens] == [token[:2] for token in expected_score.tokens]
    assert [token.logprob for token in scored.tokens] == pytest.approx(
        [token.logprob for token in expected_score.tokens], abs=1e-2
    )
    with pytest.raises(PromptTooLong) as caught:
        await ours.generate(Generate(Prompt("a cat " * 3000)))
    assert caught.value.limit == ours.context_length
    assert (await ours.generate(Generate(prompts[0], Sampling(max_tokens=100_000)))).text
    await ours.close()
    await theirs.close()


async def test_one_reply_without_logprobs_changes_no_other(fake: Server) -> None:
    """It is requested again, and fails alone if it stays odd; it never becomes a certain yes or no."""
    good, odd = (200, completion("Yes", top={"Yes": 0.55, "No": 0.45})), (200, completion("Yes"))
    fake.answers = [odd, good, odd, odd, good]
    engine = await connect(fake)
    choice = Choose(Prompt("?"))
    assert (await engine.choose(choice)).probabilities == pytest.approx((0.55, 0.45))
    with pytest.raises(EngineError, match="no logprobs"):
        await engine.choose(choice)
    assert (await engine.choose(choice)).probabilities == pytest.approx((0.55, 0.45))
    assert [request["max_tokens"] for request in fake.requests] == [1] * 5


async def test_a_reply_cut_by_the_context_is_distinguished_from_one_cut_by_max_tokens(fake: Server) -> None:
    """Even if the server counts no tokens: only the latter is cached."""
    full = error("This model's maximum context length is 100 tokens. However, 90 in the messages")
    cut = (200, completion("A cat", "length") | {"usage": None})
    fake.answers = [(400, full), cut]
    engine = await connect(fake)
    for tokens, finish in [(50, "context"), (3, "length")]:
        reply = await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=tokens)))
        assert reply.finish == finish


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_accepts_only_max_completion_tokens(fake: Server, status: int) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "max_tokens" in request:
            refusal = "Unsupported parameter: 'max_tokens' is not supported with this model. "
            return status, error(refusal + "Use 'max_completion_tokens' instead.")
        return 200, completion("A cat.")

    fake.script = script
    engine = await connect(fake)
    for _ in range(2):
        assert (await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=9)))).text == "A cat."
    limits = [{key: value for key, value in request.items() if "tokens" in key} for request in fake.requests]
    assert limits == [{"max_tokens": 9}, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}]


async def test_an_error_message_is_found_in_any_key(fake: Server) -> None:
    fake.answers = [(422, {"detail": "Unexpected fields in the request: {'seed'}"})]
    engine = await connect(fake)
    with pytest.raises(EngineError, match=r"refuses the request: .*Unexpected fields .*seed"):
        await engine.generate(Generate(Prompt("?")))


async def test_a_server_without_a_repetition_penalty(fake: Server, caplog: pytest.LogCaptureFixture) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "repetition_penalty" in request:
            return 422, {"detail": "Unexpected fields in the request: {'repetition_penalty'}"}
        return 200, completion("A cat.")

    fake.script = script
    engine = await connect(fake)
    for _ in range(2):
        reply = await engine.generate(Generate(Prompt("?"), Sampling(repetition_penalty=1.05)))
        assert reply.text == "A cat."
    assert ["repetition_penalty" in request for request in fake.requests] == [True, False, False]
    assert caplog.text.count("does not support repetition_penalty") == 1


async def test_a_server_without_system_turns(fake: Server) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if request["messages"][0]["role"] == "system":
            return 400, error("System role not supported")
        return 200, completion("A cat.")

    fake.script = fake.probe = script
    engine = await connect(fake, logprobs=False)
    prompts = [Prompt("a"), Prompt("b", IMAGE), Prompt("c")]
    replies = await asyncio.gather(*(engine.generate(Generate(prompt)) for prompt in prompts[:2]))
    replies.append(await engine.generate(Generate(prompts[2])))
    assert [reply.text for reply in replies] == ["A cat."] * 3
    roles = [request["messages"][0]["role"] for request in fake.requests]
    assert (roles.count("user"), roles[-1]) == (3, "user")
    assert roles.count("system") in (1, 2)  # both of the first two, unless one came later


async def test_a_server_without_json_schemas(fake: Server, caplog: pytest.LogCaptureFixture) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if "response_format" in request:
            return 400, error("This response_format type is unavailable now")
        return 200, completion("{}")

    fake.script = script
    engine = await connect(fake)
    for _ in range(2):
        assert (await engine.generate(Generate(Prompt("?"), schema='{"type": "object"}'))).text == "{}"
    assert ["response_format" in request for request in fake.requests] == [True, False, False]
    assert caplog.text.count("does not support JSON schemas") == 1
