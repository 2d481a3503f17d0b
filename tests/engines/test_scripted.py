import asyncio

import pytest

from scalecap.engines.base import Choose, Chosen, EngineError, Generate, Generated, Prompt, Score, Usage
from scalecap.engines.scripted import Scripted

GENERATE = Generate(Prompt("How are you?"))
CHOOSE = Choose(Prompt("Is it?"))
SCORE = Score(Prompt("Say:"), " a red  dog ")


async def test_a_list_answers_in_order_and_ends():
    engine = Scripted(["fine thanks", "again"])
    assert await engine.generate(GENERATE) == Generated("fine thanks", "stop", Usage(3, None, 2))
    assert (await engine.generate(GENERATE)).text == "again"
    with pytest.raises(EngineError, match="no reply left"):
        await engine.generate(GENERATE)


async def test_a_function_sees_the_request():
    engine = Scripted(lambda request: request.prompt.text.upper())
    assert (await engine.generate(GENERATE)).text == "HOW ARE YOU?"


async def test_a_function_may_wait_and_fail():
    async def slow(request):
        await asyncio.sleep(0)
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        await Scripted(slow).choose(CHOOSE)


@pytest.mark.parametrize(
    ("line", "probabilities"),
    [("yes", (1, 0)), ("no", (0, 1)), (0.25, (0.25, 0.75)), (Chosen((0.6, 0.4)), (0.6, 0.4))],
)
async def test_choices(line, probabilities):
    assert (await Scripted([line]).choose(CHOOSE)).probabilities == probabilities


async def test_scored_tokens_cover_every_character_once():
    scored = await Scripted([-0.5]).score(SCORE)
    assert [SCORE.text[token.start : token.end] for token in scored.tokens] == [" a", " red", "  dog "]
    assert {token.logprob for token in scored.tokens} == {-0.5}


@pytest.mark.parametrize(
    ("method", "request_", "line"),
    [
        ("generate", GENERATE, 0.5),
        ("choose", CHOOSE, "maybe"),
        ("choose", CHOOSE, 1.5),
        ("choose", CHOOSE, Generated("yes", "stop")),
        ("score", SCORE, "text"),
        ("score", SCORE, float("nan")),
    ],
)
async def test_a_line_of_the_wrong_kind_is_an_engine_error(method, request_, line):
    with pytest.raises(EngineError, match="the script answers"):
        await getattr(Scripted([line]), method)(request_)
