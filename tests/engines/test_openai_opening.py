"""Checks of a server when the engine is opened, and the identity of its replies."""

from typing import Any

import pytest
from server import Answer, Server, completion, connect, error

from scalecap.engines.base import Choose, EngineDead, Generate, Prompt
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError

pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')

from scalecap.engines.openai import open_openai


async def test_a_server_that_answers_no_question_is_named_before_any_row(fake: Server) -> None:
    fake.probe = (400, error("this model does not chat"))
    with pytest.raises(ModelError, match=r"does not answer .*does not chat.*engine\.logprobs=true or false"):
        await connect(fake)
    await connect(fake, logprobs=False)


async def test_refused_key(fake: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    engine = await connect(fake)
    assert set(fake.keys) == {"Bearer secret"}
    assert "secret" not in engine.identity
    for status, words in [(401, "OPENAI_API_KEY"), (404, r"model\.vlm\.name")]:
        fake.answers = [(status, error("no"))]
        with pytest.raises(EngineDead, match=words):
            await engine.generate(Generate(Prompt("?")))


async def test_server_that_does_not_fit(fake: Server) -> None:
    with pytest.raises(ModelError, match="one of m"):
        await connect(fake, model=ModelSettings(name="other"))
    with pytest.raises(ModelError, match="base_url"):
        await open_openai(ModelSettings(name="m"), EngineSettings())
    with pytest.raises(ModelError, match="no server answers"):
        await open_openai(
            ModelSettings(name="m"), EngineSettings(base_url="http://127.0.0.1:9/v1", retries=0)
        )
    fake.models = (401, error("no"))
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        await connect(fake)
    fake.models = (404, error("no such page"))
    engine = await connect(fake, model=ModelSettings(name="other"))
    assert engine.identity == f"openai other at={fake.url}"


async def identity(fake: Server, **given: Any) -> str:
    engine = await connect(fake, **given)
    return str(engine.identity)


async def test_servers_that_serve_other_weights_under_one_name_share_no_reply(fake: Server) -> None:
    other = Server()
    try:
        here, there = await identity(fake), await identity(other)
        assert len({here, there, await identity(fake, identity="mine")}) == 3
        assert await identity(fake, identity="mine") == await identity(other, identity="mine")
        assert here == f"openai m at={fake.url}" == await identity(fake, logprobs=True)
        assert here != await identity(fake, logprobs=False)
    finally:
        await other.close()


async def test_opening_has_the_deadline_too(fake: Server) -> None:
    fake.models = (200, "hang")
    with pytest.raises(ModelError, match=r"no server answers .* within 0\.3 seconds"):
        await connect(fake, timeout=0.3)


@pytest.mark.parametrize(("most", "suffix"), [(5, " top_logprobs=5"), (1, " choices=text")])
async def test_a_server_that_returns_fewer_log_probabilities(fake: Server, most: int, suffix: str) -> None:
    def script(request: dict[str, Any]) -> Answer:
        if request.get("top_logprobs", 0) > most:
            return 400, error(f"Requested sample logprobs of 20, which is greater than max allowed: {most}")
        top = {"Yes": 0.6, "No": 0.2, "It": 0.05} if "logprobs" in request else None
        return 200, completion("Yes", top=top)

    fake.script = fake.probe = script
    engine = await connect(fake)
    assert engine.identity == f"openai m at={fake.url}{suffix}"
    chosen = await engine.choose(Choose(Prompt("?")))
    assert chosen.probabilities == pytest.approx((0.75, 0.25) if most == 5 else (1, 0))
    assert fake.requests[-1].get("top_logprobs") == (5 if most == 5 else None)
    assert len(fake.requests) == 1


async def test_a_server_that_returns_the_log_probability_of_its_own_token_only(fake: Server) -> None:
    fake.script = fake.probe = lambda _: (200, completion("Yes", top={"Yes": 0.55}))
    engine = await connect(fake)
    assert engine.identity.endswith(" choices=text")


async def test_a_server_that_returns_fewer_log_probabilities_than_asked_for_and_does_not_say_so(
    fake: Server,
) -> None:
    top = {"Yes": 0.3, "It": 0.2, "The": 0.15, "A": 0.12, "I": 0.1}
    fake.answers = [(200, completion("Yes", top=top))]
    engine = await connect(fake)
    assert not (await engine.choose(Choose(Prompt("?")))).answered  # no may have 0.1
