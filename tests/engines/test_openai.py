"""The engine against a server with faults, and against vLLM's own server."""

import asyncio
import base64
import io
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from server import Answer, Server, completion

from scalecap.engines.base import (
    Choose,
    EngineDead,
    EngineError,
    Generate,
    Image,
    Prompt,
    PromptTooLong,
    Sampling,
    Score,
)
from scalecap.engines.weights import ModelError
from scalecap.settings import EngineSettings, ModelSettings

openai = pytest.importorskip("openai", reason='needs pip install "scalecap[openai]"')

from scalecap.engines.completions import tokens_of, too_long  # noqa: E402
from scalecap.engines.openai import OpenAIEngine, open_openai  # noqa: E402

GREEDY = Sampling(temperature=0, max_tokens=12)
Picture = Callable[[int], Image]


def settings(fake: Server, **given: Any) -> EngineSettings:
    return EngineSettings(name="openai", base_url=fake.url, **given)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    yield server
    server.stop()


def error(message: str) -> Any:
    return {"error": {"message": message, "type": "invalid_request_error", "code": 400}}


async def test_reply_with_picture(fake: Server) -> None:
    fake.answers = [(200, completion("A cat.", "length"))]
    engine = await open_openai(ModelSettings(name="m", max_pixels=50), settings(fake))
    pixels = Pillow.effect_noise((20, 10), 90).convert("RGB")
    prompt = Prompt("What is it?", Image("h", pixels), "Be brief.")
    reply = await engine.generate(
        Generate(prompt, Sampling(repetition_penalty=1.05, max_tokens=2), seed=2**64 + 5)
    )
    fake.answers = [(200, completion("A cat.", "length"))]
    short = await engine.generate(Generate(prompt))
    await engine.close()
    assert short.finish == "context"  # the server had no room for all that was asked for
    assert (reply.text, reply.finish, reply.usage.prompt_tokens) == ("A cat.", "length", 7)
    asked = fake.asked[0]
    assert asked["seed"] == 5
    assert asked["repetition_penalty"] == 1.05
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    picture, text = asked["messages"][1]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    sent = Pillow.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
    assert (sent.format, sent.size) == ("PNG", (10, 5))


async def test_a_schema_is_asked_for(fake: Server) -> None:
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    await engine.generate(Generate(Prompt("?")))
    assert "response_format" not in fake.asked[-1]
    await engine.generate(Generate(Prompt("?"), schema='{"type": "object"}'))
    wanted = {"name": "reply", "schema": {"type": "object"}}
    assert fake.asked[-1]["response_format"] == {"type": "json_schema", "json_schema": wanted}
    await engine.close()


async def test_half_a_character_is_replaced(fake: Server) -> None:
    fake.answers = [(200, completion("A \ud83d cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    assert (await engine.generate(Generate(Prompt("?")))).text == "A ? cat."
    await engine.close()


@pytest.mark.parametrize(
    "fault", [(429, error("slow down")), (500, error("oops")), (503, b"<html>busy</html>")], ids=str
)
async def test_faults_that_pass(fake: Server, fault: Answer) -> None:
    fake.answers = [fault, fault, (200, completion("A cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake, retries=2))
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    fake.answers = [fault]
    with pytest.raises(EngineError):
        await engine.generate(Generate(Prompt("?")))
    assert len(fake.asked) == 6
    await engine.close()


async def test_waits_as_told(fake: Server) -> None:
    fake.headers = {"Retry-After": "1"}
    fake.answers = [(429, error("slow down")), (200, completion("A cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    start = time.monotonic()
    await engine.generate(Generate(Prompt("?")))
    assert time.monotonic() - start > 0.9
    await engine.close()


@pytest.mark.parametrize(
    ("body", "times"),
    [(b"{garbage", 2), (b"", 2), ({"hello": "world"}, 2), ([], 2), (completion("", "content_filter"), 1)],
    ids=str,
)
async def test_odd_answers_fail_alone(fake: Server, body: Any, times: int) -> None:
    """Garbage is asked again once; what a filter withholds is not."""
    fake.answers = [*[(200, body)] * times, (200, completion("A cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    with pytest.raises(EngineError) as caught:
        await engine.generate(Generate(Prompt("?")))
    assert len(fake.asked) == times
    assert not isinstance(caught.value, EngineDead)
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    await engine.close()


@pytest.mark.parametrize(("away", "answered"), [([True, True, True, False], True), ([False, False], False)])
async def test_a_connection_lost_to_a_server_that_was_away_costs_no_try(
    fake: Server, monkeypatch: pytest.MonkeyPatch, away: list[bool], answered: bool
) -> None:
    looks = iter(away)

    async def look(_: OpenAIEngine) -> bool:
        return next(looks)

    monkeypatch.setattr(OpenAIEngine, "_look", look)
    fake.answers = [*[(200, "reset")] * len(away), (200, completion("A cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake, retries=0))
    if answered:
        assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    else:
        with pytest.raises(EngineError, match="APIConnectionError"):
            await engine.generate(Generate(Prompt("?")))
    assert next(looks, None) is None
    await engine.close()


async def test_choice(fake: Server) -> None:
    fake.answers = [(200, completion("Yes", top={"Yes": 0.5, " no": 0.1, "yes": 0.25, "Maybe": 0.1}))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    chosen = await engine.choose(Choose(Prompt("?")))
    assert chosen.probabilities == pytest.approx((0.75 / 0.85, 0.1 / 0.85))
    assert chosen.mass == pytest.approx(0.85)
    assert (fake.asked[0]["max_tokens"], fake.asked[0]["top_logprobs"]) == (1, 20)
    fake.answers = [(200, completion("Hm", top={"Hm": 1.0}))]
    neither = await engine.choose(Choose(Prompt("?")))
    assert (neither.probabilities, neither.mass) == ((0, 0), 0)
    await engine.close()


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
        engine = await open_openai(ModelSettings(name="m"), settings(fake))
    chosen = [await engine.choose(Choose(Prompt("?"), ("yes", "no", "n/a"))) for _ in words]
    assert [(reply.probabilities, reply.mass) for reply in chosen] == [
        ((1, 0, 0), 1),
        ((0, 1, 0), 1),
        ((0, 0, 1), 1),
        ((0, 0, 0), 0),
    ]
    assert len([record for record in caplog.records if "log-probabilities" in record.message]) == 1
    assert engine.identity.endswith("choices=text")
    await engine.close()


async def test_a_server_that_answers_no_question_is_named_before_any_row(fake: Server) -> None:
    fake.probe = (400, error("this model does not chat"))
    with pytest.raises(ModelError, match=r"does not answer .*does not chat.*engine\.logprobs=true or false"):
        await open_openai(ModelSettings(name="m"), settings(fake))
    await (await open_openai(ModelSettings(name="m"), settings(fake, logprobs=False))).close()


async def test_what_is_sent_beyond_the_protocol(fake: Server) -> None:
    fake.answers = [(200, completion("Yes", top={"Yes": 1.0}))]
    thinking = {"enable_thinking": False}
    model = ModelSettings(name="m", chat_template_kwargs=thinking)
    given = settings(fake, extra_body={"top_k": 20, "provider": {"order": ["a"]}})
    engine = await open_openai(model, given)
    await engine.generate(Generate(Prompt("?"), Sampling(repetition_penalty=1.05)))
    await engine.choose(Choose(Prompt("?")))
    await engine.close()
    for asked in fake.asked:
        assert asked["chat_template_kwargs"] == thinking
        assert (asked["top_k"], asked["provider"]) == (20, {"order": ["a"]})
    assert [asked.get("repetition_penalty") for asked in fake.asked] == [1.05, None]


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
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    with caplog.at_level(logging.WARNING):
        replies = [await engine.generate(Generate(Prompt("?"))) for _ in range(2)]
    await engine.close()
    assert [(reply.text, reply.reasoning) for reply in replies] == [(text, reasoning)] * 2
    assert replies[0].usage.reasoning_tokens == 1
    warned = [record.getMessage() for record in caplog.records if "reasons before" in record.message]
    assert len(warned) == (1 if reasoning else 0)
    assert all("chat_template_kwargs.enable_thinking=false" in line for line in warned)


async def test_score_needs_more_than_the_protocol(fake: Server) -> None:
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    with pytest.raises(EngineError, match="engine=vllm"):
        await engine.score(Score(Prompt("?"), "A cat."))
    await engine.close()


async def test_prompttoo_long(fake: Server) -> None:
    message = (
        "This model's maximum context length is 100 tokens. However, you requested {} tokens "
        "({} in the messages, {} in the completion)."
    )
    fake.answers = [(400, error(message.format(590, 90, 500))), (200, completion("A cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    assert (await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=500)))).text == "A cat."
    assert fake.asked[1]["max_tokens"] == 10
    fake.answers = [(400, error(message.format(700, 200, 500)))]
    with pytest.raises(PromptTooLong) as caught:
        await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=500)))
    assert (caught.value.tokens, caught.value.limit) == (200, 100)
    await engine.close()


@pytest.mark.parametrize(
    ("message", "tokens", "limit"),
    [
        ("Input length (3000) exceeds model's maximum context length (2048).", 3000, 2048),
        (
            "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 "
            "input tokens, which exceeds this limit",
            2049,
            2048,
        ),
        (
            "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested "
            "a total of 2600 tokens: 2500 tokens from the input messages and 100 tokens for the completion.",
            2500,
            2048,
        ),
        ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 5000, 4096),
    ],
)
def test_refusals_of_servers(message: str, tokens: int, limit: int) -> None:
    long = too_long(message, None)
    assert long
    assert (long.tokens, long.limit) == (tokens, limit)


async def test_refused_key(fake: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    assert set(fake.keys) == {"Bearer secret"}
    assert "secret" not in engine.identity
    for status, words in [(401, "OPENAI_API_KEY"), (404, r"model\.vlm\.name")]:
        fake.answers = [(status, error("no"))]
        with pytest.raises(EngineDead, match=words):
            await engine.generate(Generate(Prompt("?")))
    await engine.close()


async def test_server_that_does_not_fit(fake: Server) -> None:
    with pytest.raises(ModelError, match="one of m"):
        await open_openai(ModelSettings(name="other"), settings(fake))
    with pytest.raises(ModelError, match="base_url"):
        await open_openai(ModelSettings(name="m"), EngineSettings())
    with pytest.raises(ModelError, match="no server answers"):
        await open_openai(
            ModelSettings(name="m"), EngineSettings(base_url="http://127.0.0.1:9/v1", retries=0)
        )
    fake.models = (401, error("no"))
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        await open_openai(ModelSettings(name="m"), settings(fake))
    fake.models = (404, error("no such page"))
    engine = await open_openai(ModelSettings(name="other"), settings(fake))
    assert engine.identity == f"openai other at={fake.url}"
    await engine.close()


async def test_bounded(fake: Server) -> None:
    engine = await open_openai(ModelSettings(name="m"), settings(fake, concurrency=3))
    await asyncio.gather(*(engine.generate(Generate(Prompt(str(number)))) for number in range(12)))
    assert len(fake.asked) == 12
    assert fake.most <= 3
    await engine.close()


def test_tokens_that_spell_a_text() -> None:
    pieces = [("<s>", -9.0), ("a", -1.0), (" c", -2.0), ("", -3.0), ("ä", -4.0), ("t", -5.0)]
    assert [tuple(token[:3]) for token in tokens_of(pieces, " cät")] == [
        (0, 2, -2.0),
        (2, 3, -7.0),
        (3, 4, -5.0),
    ]
    assert [tuple(token[:3]) for token in tokens_of(pieces, "ät")] == [(0, 1, -7.0), (1, 2, -5.0)]
    with pytest.raises(EngineError, match="spell"):
        tokens_of(pieces, "at")


@pytest.mark.slow
async def test_agrees_with_transformers_behind_a_real_server(
    served: str, embedded: Path, picture: Picture
) -> None:
    """Same weights in float32: the same greedy texts, the same probabilities up to rounding."""
    from scalecap.engines.transformers import open_transformers

    ours = await open_openai(ModelSettings(name="scenes"), EngineSettings(base_url=served))
    theirs = await open_transformers(ModelSettings(name=str(embedded)), EngineSettings())
    assert ours.context_length == theirs.context_length
    prompts = [
        Prompt("Is it true? There is a cat. Answer yes or no.", picture(1)),
        Prompt("Describe the picture.", picture(1)),
        Prompt("Is it a cat? " * 20, picture(2)),
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


async def identity(fake: Server, model: str = "m", **given: Any) -> str:
    engine = await open_openai(ModelSettings(name=model), settings(fake, **given))
    await engine.close()
    return engine.identity


async def test_servers_that_serve_other_weights_under_one_name_share_no_reply(fake: Server) -> None:
    other = Server()
    try:
        here, there = await identity(fake), await identity(other)
        assert len({here, there, await identity(fake, identity="mine")}) == 3
        assert await identity(fake, identity="mine") == await identity(other, identity="mine")
        assert here == f"openai m at={fake.url}" == await identity(fake, logprobs=True)
        assert here != await identity(fake, logprobs=False)
    finally:
        other.stop()


async def test_one_reply_without_logprobs_changes_no_other(fake: Server) -> None:
    """It is asked for again, and fails alone when it stays odd; it never becomes a sure yes or no."""
    good, odd = (200, completion("Yes", top={"Yes": 0.55, "No": 0.45})), (200, completion("Yes"))
    fake.answers = [odd, good, odd, odd, good]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    choice = Choose(Prompt("?"))
    assert (await engine.choose(choice)).probabilities == pytest.approx((0.55, 0.45))
    with pytest.raises(EngineError, match="no logprobs"):
        await engine.choose(choice)
    assert (await engine.choose(choice)).probabilities == pytest.approx((0.55, 0.45))
    assert [asked["max_tokens"] for asked in fake.asked] == [1] * 5
    await engine.close()


@pytest.mark.parametrize("fault", [(200, "hang"), (429, error("slow down"))], ids=["hang", "429"])
async def test_a_request_has_one_deadline_for_all_its_tries(
    fake: Server, monkeypatch: pytest.MonkeyPatch, fault: Answer
) -> None:
    monkeypatch.setattr("scalecap.engines.openai._LOOK", 0.01)
    fake.headers = {"Retry-After": "30"}
    fake.answers = [fault, (200, completion("A cat."))]
    engine = await open_openai(ModelSettings(name="m"), settings(fake, timeout=0.3, retries=3))
    with pytest.raises(EngineError, match=r"no answer within engine\.timeout=0\.3 seconds"):
        await engine.generate(Generate(Prompt("?")))
    assert len(fake.asked) == 1
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    await engine.close()


async def test_a_deadline_that_passes_while_the_server_is_away_begins_anew(
    fake: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True, False])

    async def look(_: OpenAIEngine) -> bool:
        return next(looks)

    monkeypatch.setattr(OpenAIEngine, "_look", look)
    engine = await open_openai(ModelSettings(name="m"), settings(fake, timeout=0.5))
    fake.answers = [(200, "hang"), (200, completion("A cat."))]
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    await engine.close()


async def test_opening_has_the_deadline_too(fake: Server) -> None:
    fake.models = (200, "hang")
    with pytest.raises(ModelError, match=r"no server answers .* within 0\.3 seconds"):
        await open_openai(ModelSettings(name="m"), settings(fake, timeout=0.3))


async def test_a_reply_cut_by_the_context_is_told_from_one_cut_by_max_tokens(fake: Server) -> None:
    """Even by a server that does not count tokens: the one is cached, the other is not."""
    full = error("This model's maximum context length is 100 tokens. However, 90 in the messages")
    cut = (200, completion("A cat", "length") | {"usage": None})
    fake.answers = [(400, full), cut]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    for tokens, finish in [(50, "context"), (3, "length")]:
        reply = await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=tokens)))
        assert reply.finish == finish
    await engine.close()


@pytest.mark.parametrize("status", [400, 422])
async def test_a_server_that_knows_max_completion_tokens_alone(fake: Server, status: int) -> None:
    def script(asked: dict[str, Any]) -> Answer:
        if "max_tokens" in asked:
            refusal = "Unsupported parameter: 'max_tokens' is not supported with this model. "
            return status, error(refusal + "Use 'max_completion_tokens' instead.")
        return 200, completion("A cat.")

    fake.script = script
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    for _ in range(2):
        assert (await engine.generate(Generate(Prompt("?"), Sampling(max_tokens=9)))).text == "A cat."
    limits = [{key: value for key, value in asked.items() if "tokens" in key} for asked in fake.asked]
    assert limits == [{"max_tokens": 9}, {"max_completion_tokens": 9}, {"max_completion_tokens": 9}]
    await engine.close()


async def test_the_words_of_a_refusal_are_told_wherever_they_stand(fake: Server) -> None:
    fake.answers = [(422, {"detail": "Unexpected fields in the request: {'seed'}"})]
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    with pytest.raises(EngineError, match=r"refuses the request: .*Unexpected fields .*seed"):
        await engine.generate(Generate(Prompt("?")))
    await engine.close()


async def test_a_server_without_a_repetition_penalty(fake: Server, caplog: pytest.LogCaptureFixture) -> None:
    def script(asked: dict[str, Any]) -> Answer:
        if "repetition_penalty" in asked:
            return 422, {"detail": "Unexpected fields in the request: {'repetition_penalty'}"}
        return 200, completion("A cat.")

    fake.script = script
    engine = await open_openai(ModelSettings(name="m"), settings(fake))
    for _ in range(2):
        reply = await engine.generate(Generate(Prompt("?"), Sampling(repetition_penalty=1.05)))
        assert reply.text == "A cat."
    assert ["repetition_penalty" in asked for asked in fake.asked] == [True, False, False]
    assert caplog.text.count("knows no repetition_penalty") == 1
    await engine.close()


async def test_encoded_pictures_are_kept_by_their_bytes(
    fake: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []

    def encode(image: Image, _: int | None) -> str:
        encoded.append(image.hash)
        return "x" * (1000 if image.hash == "large" else 100)

    monkeypatch.setattr("scalecap.engines.openai._data_url", encode)
    monkeypatch.setattr("scalecap.engines.openai._PICTURE_BYTES", 300)
    engine = await open_openai(ModelSettings(name="m"), settings(fake))

    async def show(*names: str) -> list[str]:
        encoded.clear()
        for name in names:
            picture = Image(name, Pillow.new("RGB", (1, 1)))
            await engine.generate(Generate(Prompt("?", picture)))
        return encoded

    assert await show("a", "b", "c", "a", "b", "c") == ["a", "b", "c"]
    assert await show("d", "a") == ["d", "a"]  # "a" was the oldest
    assert await show("large", "large", "a") == ["large", "a"]  # what is in use is kept, however large
    await engine.close()
