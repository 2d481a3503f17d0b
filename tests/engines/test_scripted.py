import asyncio

import pytest

from scalecap.engines.base import Choose, Chosen, EngineError, Generate, Generated, Prompt, Score, Usage
from scalecap.engines.scripted import Scripted

ASK = Generate(Prompt("How are you?"))
PICK = Choose(Prompt("Is it?"))
RATE = Score(Prompt("Say:"), " a red  dog ")


async def test_a_list_answers_in_order_and_ends():
    engine = Scripted(["fine thanks", "again"])
    assert await engine.generate(ASK) == Generated("fine thanks", "stop", Usage(3, None, 2))
    assert (await engine.generate(ASK)).text == "again"
    with pytest.raises(EngineError, match="no reply left"):
        await engine.generate(ASK)


async def test_a_function_sees_the_request():
    engine = Scripted(lambda request: request.prompt.text.upper())
    assert (await engine.generate(ASK)).text == "HOW ARE YOU?"


async def test_a_function_may_wait_and_fail():
    async def slow(request):
        await asyncio.sleep(0)
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        await Scripted(slow).choose(PICK)


@pytest.mark.parametrize(
    ("line", "probabilities"),
    [("yes", (1, 0)), ("no", (0, 1)), (0.25, (0.25, 0.75)), (Chosen((0.6, 0.4)), (0.6, 0.4))],
)
async def test_choices(line, probabilities):
    assert (await Scripted([line]).choose(PICK)).probabilities == probabilities


async def test_scored_tokens_cover_every_character_once():
    scored = await Scripted([-0.5]).score(RATE)
    assert [RATE.text[token.start : token.end] for token in scored.tokens] == [" a", " red", "  dog "]
    assert {token.logprob for token in scored.tokens} == {-0.5}


@pytest.mark.parametrize(
    ("method", "request_", "line"),
    [
        ("generate", ASK, 0.5),
        ("choose", PICK, "maybe"),
        ("choose", PICK, 1.5),
        ("choose", PICK, Generated("yes", "stop")),
        ("score", RATE, "text"),
        ("score", RATE, float("nan")),
    ],
)
async def test_a_line_of_the_wrong_kind_is_an_engine_error(method, request_, line):
    with pytest.raises(EngineError, match="the script answers"):
        await getattr(Scripted([line]), method)(request_)
