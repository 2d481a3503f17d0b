"""Retries, deadlines, and a server that is down for a while."""

import asyncio
import time
from typing import Any

import pytest
from server import Answer, Server, completion, connect, error

from scalecap.engines.base import EngineDead, EngineError, Generate, Prompt

pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')

from scalecap.engines.servers import ServerPool


@pytest.mark.parametrize(
    "fault", [(429, error("slow down")), (500, error("oops")), (503, b"<html>busy</html>")], ids=str
)
async def test_transient_faults_are_retried(fake: Server, fault: Answer) -> None:
    fake.answers = [fault, fault, (200, completion("A cat."))]
    engine = await connect(fake, retries=2)
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    fake.answers = [fault]
    with pytest.raises(EngineError):
        await engine.generate(Generate(Prompt("?")))
    assert len(fake.requests) == 6


async def test_retry_after_is_respected(fake: Server) -> None:
    fake.headers = {"Retry-After": "0.3"}
    fake.answers = [(429, error("slow down")), (200, completion("A cat."))]
    engine = await connect(fake)
    start = time.monotonic()
    await engine.generate(Generate(Prompt("?")))
    assert time.monotonic() - start > 0.29


@pytest.mark.parametrize(
    ("body", "times"),
    [(b"{garbage", 2), (b"", 2), ({"hello": "world"}, 2), ([], 2), (completion("", "content_filter"), 1)],
    ids=str,
)
async def test_an_unusable_response_fails_one_request(fake: Server, body: Any, times: int) -> None:
    """An unreadable response is retried once; a reply withheld by a filter is not."""
    fake.answers = [*[(200, body)] * times, (200, completion("A cat."))]
    engine = await connect(fake)
    with pytest.raises(EngineError) as caught:
        await engine.generate(Generate(Prompt("?")))
    assert len(fake.requests) == times
    assert not isinstance(caught.value, EngineDead)
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."


@pytest.mark.parametrize(("away", "answered"), [([True, True, True, False], True), ([False, False], False)])
async def test_a_connection_lost_to_a_server_that_was_down_costs_no_retry(
    fake: Server, monkeypatch: pytest.MonkeyPatch, away: list[bool], answered: bool
) -> None:
    polls = iter(away)

    async def poll(*_: object) -> bool:
        return next(polls)

    monkeypatch.setattr(ServerPool, "_poll_until_up", poll)
    fake.answers = [*[(200, "reset")] * len(away), (200, completion("A cat."))]
    engine = await connect(fake, retries=0)
    if answered:
        assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."
    else:
        with pytest.raises(EngineError, match="ConnectionError"):
            await engine.generate(Generate(Prompt("?")))
    assert next(polls, None) is None


async def expire(engine: Any, fake: Server) -> None:
    """Lets the deadline of the request pass that the server got."""
    while not fake.requests:
        await asyncio.sleep(0.001)
    (deadline,) = engine._pool.servers[0].deadlines
    assert deadline.when() <= asyncio.get_running_loop().time() + engine._timeout
    engine._pool.servers[0].expire_requests()


@pytest.mark.parametrize("fault", [(200, "hang"), (429, error("slow down"))], ids=["hang", "429"])
async def test_a_request_has_one_deadline_for_all_retries(
    fake: Server, monkeypatch: pytest.MonkeyPatch, fault: Answer
) -> None:
    monkeypatch.setattr("scalecap.engines.servers._HEALTH_INTERVAL", 0.01)
    fake.headers = {"Retry-After": "500"}
    fake.answers = [fault, (200, completion("A cat."))]
    engine = await connect(fake, timeout=60, retries=3)
    answering = asyncio.create_task(engine.generate(Generate(Prompt("?"))))
    await expire(engine, fake)
    with pytest.raises(EngineError, match=r"no answer within engine\.timeout=60 seconds"):
        await answering
    assert len(fake.requests) == 1
    assert (await engine.generate(Generate(Prompt("?")))).text == "A cat."


async def test_a_deadline_that_passes_while_the_server_is_down_starts_over(
    fake: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = iter([True, False])

    async def poll(*_: object) -> bool:
        return next(polls)

    monkeypatch.setattr(ServerPool, "_poll_until_up", poll)
    engine = await connect(fake)
    fake.answers = [(200, "hang"), (200, completion("A cat."))]
    answering = asyncio.create_task(engine.generate(Generate(Prompt("?"))))
    await expire(engine, fake)
    assert (await answering).text == "A cat."


async def test_concurrency_is_limited(fake: Server) -> None:
    engine = await connect(fake, concurrency=3)
    await asyncio.gather(*(engine.generate(Generate(Prompt(str(number)))) for number in range(12)))
    assert len(fake.requests) == 12
    assert fake.max_in_flight <= 3
