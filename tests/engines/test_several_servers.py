"""Several servers as one engine: routing by image, and failover when one goes down."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from PIL import Image as Pillow
from server import Server, completion, connect, error, settings

from scalecap.engines.base import Choose, EngineDead, EngineError, Generate, Image, Prompt
from scalecap.engines.settings import ModelSettings
from scalecap.engines.weights import ModelError

pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')

from scalecap.engines.openai import OpenAIEngine, preflight

MODEL = ModelSettings(name="m")
IMAGES = [Image(f"image {number}", Pillow.new("RGB", (1, 1))) for number in range(30)]


@pytest.fixture
async def fakes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Server]]:
    """Three servers of one model, each of which replies with its number."""
    monkeypatch.setattr("scalecap.engines.servers._BACKOFF", 0.001)
    monkeypatch.setattr("scalecap.engines.servers._HEALTH_INTERVAL", 0.02)
    servers = [Server() for _ in range(3)]
    for number, server in enumerate(servers):
        server.seconds = 0.002
        server.answers = [(200, completion(str(number)))]
    yield servers
    for server in servers:
        await server.close()


async def answerers(engine: OpenAIEngine, times: int = 1) -> dict[str, set[int]]:
    """By image, the numbers of the servers that answered."""
    answered_by: dict[str, set[int]] = {image.hash: set() for image in IMAGES}

    async def send(image: Image, time: int) -> None:
        reply = await engine.generate(Generate(Prompt(f"What is it, {time}?", image)))
        answered_by[image.hash].add(int(reply.text))

    await asyncio.gather(*(send(image, time) for image in IMAGES for time in range(times)))
    return answered_by


async def until(holds: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < 60
        await asyncio.sleep(0.01)


async def test_an_images_requests_go_to_one_server(fakes: list[Server]) -> None:
    engine = await connect(*fakes)
    assert engine.concurrency == 3 * 32
    whole = await answerers(engine, times=4)
    assert {len(each) for each in whole.values()} == {1}
    assert [len(fake.requests) for fake in fakes] == [
        4 * sum(each == {number} for each in whole.values()) for number in range(3)
    ]
    assert all(fake.requests for fake in fakes)
    counts = [f"{len(fake.requests)} by {fake.url}" for fake in fakes]
    assert engine.notes() == [f"Requests answered: {', '.join(counts)}."]
    # In whatever order the servers are listed, and one fewer moves its own images alone.
    for fewer in ([fakes[2], fakes[0], fakes[1]], fakes[:2], fakes[1:]):
        engine = await connect(*fewer)
        there = {fakes.index(fake) for fake in fewer}
        answered_by = await answerers(engine)
        assert all(answered_by[name] == each for name, each in whole.items() if each <= there)


async def test_texts_without_an_image_are_shared_out_by_prompt(fakes: list[Server]) -> None:
    engine = await connect(*fakes)
    replies = [
        [(await engine.generate(Generate(Prompt(f"Join {number}.")))).text for number in range(40)]
        for _ in range(2)
    ]
    assert replies[0] == replies[1]
    assert set(replies[0]) == {"0", "1", "2"}


async def test_a_server_that_dies_moves_its_images_alone_and_is_taken_back(fakes: list[Server]) -> None:
    engine = await connect(*fakes)
    whole = await answerers(engine)
    fakes[0].stop()
    without = await answerers(engine, times=2)
    assert all(len(each) == 1 for each in without.values())
    rerouted = [name for name, each in whole.items() if each == {0}]
    assert {name for name in whole if without[name] != whole[name]} == set(rerouted)
    assert engine._pool.servers[0].rerouted == 2 * len(rerouted)
    await until(lambda: not engine._pool.servers[0].up)
    fakes[0].start()
    await until(lambda: engine._pool.servers[0].up)
    assert await answerers(engine) == whole
    notes = engine.notes()
    assert notes[1:] == [
        f"{fakes[0].url} was away (once); others answered {2 * len(rerouted)} of its requests."
    ]
    assert engine.notes()[1:] == []


async def test_requests_in_flight_at_a_server_that_dies_are_answered_by_others(fakes: list[Server]) -> None:
    fakes[1].answers = [(200, "hang")]
    engine = await connect(*fakes)
    answering = asyncio.create_task(answerers(engine))
    await until(lambda: len(fakes[1].requests) > 3)
    fakes[1].stop()
    answered_by = await answering
    assert not any(1 in each for each in answered_by.values())
    seen = Counter(str(request["messages"]) for fake in (fakes[0], fakes[2]) for request in fake.requests)
    assert sum(seen.values()) == len(IMAGES)


async def test_all_down(fakes: list[Server]) -> None:
    engine = await connect(*fakes)
    for fake in fakes:
        fake.stop()
    timeout, engine._pool._timeout = engine._pool._timeout, 0.5
    with pytest.raises(EngineDead) as caught:
        await engine.generate(Generate(Prompt("?")))
    assert all(fake.url in str(caught.value) for fake in fakes)
    engine._pool._timeout = timeout
    fakes[2].start()
    assert (await engine.generate(Generate(Prompt("?")))).text == "2"
    for fake in fakes[:2]:
        fake.start()


async def test_an_error_names_each_server_if_all_are_down(fakes: list[Server]) -> None:
    for fake in fakes:
        fake.stop()
    with pytest.raises(ModelError) as caught:
        await connect(*fakes)
    assert all(f"no server answers at engine.base_url={fake.url} (" in str(caught.value) for fake in fakes)
    for fake in fakes:
        fake.start()


async def test_a_server_that_comes_up_later_joins(fakes: list[Server]) -> None:
    whole = await answerers(engine := await connect(*fakes))
    await engine.close()
    fakes[0].stop()
    engine = await connect(*fakes)
    assert not any(0 in each for each in (await answerers(engine)).values())
    late = engine._pool.servers[0]
    for models, probe in [
        ((200, {"data": [{"id": "other"}]}), (200, completion("Yes", top={"Yes": 0.9}))),
        ((200, {"data": [{"id": "m"}]}), (200, completion("Yes"))),
    ]:
        fakes[0].models, fakes[0].probe = models, probe
        before = late.last_error
        fakes[0].start()
        await until(
            lambda before=before: isinstance(late.last_error, ModelError) and late.last_error is not before
        )
        assert not late.up
        fakes[0].stop()
    fakes[0].probe = (200, completion("Yes", top={"Yes": 0.9}))
    fakes[0].start()
    await until(lambda: late.up)
    assert await answerers(engine) == whole


@pytest.mark.parametrize(
    "fault", [(500, error("oops")), (503, b"busy"), (200, "reset"), (200, "hang")], ids=str
)
async def test_one_request_that_one_server_does_not_answer_is_answered_by_another(
    fakes: list[Server], fault: Any
) -> None:
    engine = await connect(*fakes)
    first = next(at for at, fake in enumerate(fakes) if fake.url == engine._pool.order("?")[0].connection.url)
    fakes[first].answers = [fault, (200, completion(str(first)))]
    answering = asyncio.create_task(engine.generate(Generate(Prompt("?"))))
    if fault[1] == "hang":
        await until(lambda: bool(fakes[first].requests))
        engine._pool.servers[first].expire_requests()  # its deadline passes
    assert (await answering).text != str(first)
    await until(lambda: all(task.done() for task in engine._pool._health_checks.values()))
    assert (await engine.generate(Generate(Prompt("?")))).text == str(first)


@pytest.mark.parametrize("status", [401, 404])
async def test_a_server_that_refuses_everything_is_left(fakes: list[Server], status: int) -> None:
    engine = await connect(*fakes)
    fakes[0].answers, fakes[0].models = [(status, error("no"))], (200, {"data": [{"id": "other"}]})
    answered_by = await answerers(engine)
    assert not any(0 in each for each in answered_by.values())
    assert not engine._pool.servers[0].up


async def test_a_request_that_every_server_drops_fails_alone(fakes: list[Server]) -> None:
    for fake in fakes:
        good = fake.script
        fake.script = lambda request, good=good: (200, "reset") if "bad" in str(request) else good(request)
    engine = await connect(*fakes, retries=1)
    with pytest.raises(EngineError) as caught:
        await engine.generate(Generate(Prompt("bad")))
    assert not isinstance(caught.value, EngineDead)
    assert [len(fake.requests) for fake in fakes] == [3, 3, 3]
    assert (await engine.generate(Generate(Prompt("?")))).text


async def test_a_machine_that_vanished(fakes: list[Server], monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers nothing, and does not refuse connections either."""
    monkeypatch.setattr("scalecap.engines.servers._STALL_SECONDS", 0.1)
    monkeypatch.setattr("scalecap.engines.servers._HEALTH_TIMEOUT", 0.5)
    engine = await connect(*fakes)
    fakes[0].answers, fakes[0].models = [(200, "hang")], (200, "hang")
    answered_by = await asyncio.wait_for(answerers(engine), 60)
    assert {number for each in answered_by.values() for number in each} == {1, 2}


async def test_each_server_has_its_own_concurrency_limit(fakes: list[Server]) -> None:
    for fake in fakes:
        fake.seconds = 0.05  # so that requests meet
    engine = await connect(*fakes, concurrency=2)
    await answerers(engine, times=3)
    assert engine.concurrency == 6
    assert max(fake.max_in_flight for fake in fakes) == 2


async def test_the_name_of_max_tokens_is_found_out_for_each_server(fakes: list[Server]) -> None:
    def later(request: dict[str, Any]) -> Any:
        wrong = "max_tokens" in request
        return (400, error("use 'max_completion_tokens' instead")) if wrong else (200, completion("0"))

    fakes[0].script = later
    engine = await connect(*fakes)
    await answerers(engine)
    assert all("max_tokens" in request for fake in fakes[1:] for request in fake.requests)
    assert "max_completion_tokens" in fakes[0].requests[-1]


async def test_servers_that_differ_are_named(fakes: list[Server]) -> None:
    def serve(number: int, **card: Any) -> None:
        fakes[number].models = (200, {"data": [{"id": "m", **card}]})

    serve(0, max_model_len=4096, root="/a")
    serve(1, max_model_len=2048, root="/a")
    with pytest.raises(ModelError, match=r"differ in max_model_len: 4096 at .*, 2048 at .*same context"):
        await connect(*fakes)
    serve(1, max_model_len=4096, root="/b")
    with pytest.raises(ModelError, match=r"differ in root: /a at .*, /b at .*engine\.identity="):
        await connect(*fakes)
    engine = await connect(*fakes, identity="the same")
    assert (engine.identity, engine.context_length) == ("openai m is=the same", 4096)
    serve(2, max_model_len=4096, root="/a")
    fakes[1].models = (200, {"data": [{"id": "other"}]})
    with pytest.raises(ModelError, match=f"{fakes[1].url} has no model m"):
        await connect(*fakes)
    serve(1)
    fakes[1].probe = (200, completion("Yes"))
    with pytest.raises(ModelError, match=r"return log-probabilities and .* do not: engine\.logprobs=false"):
        await connect(*fakes)
    engine = await connect(*fakes, logprobs=False)
    await engine.choose(Choose(Prompt("?")))


async def test_one_identity_in_whatever_order(fakes: list[Server]) -> None:
    names = []
    for order in (fakes, fakes[::-1], [*fakes, fakes[0]]):
        engine = await connect(*order)
        names.append(engine.identity)
    assert set(names) == {f"openai m at={','.join(sorted(fake.url for fake in fakes))}"}


def test_preflight_checks_each(fakes: list[Server]) -> None:
    assert preflight(MODEL, settings(*fakes)) == ""
    fakes[0].models = (404, {})
    fakes[1].stop()
    unchecked = preflight(MODEL, settings(*fakes))
    fakes[1].start()
    assert unchecked == (
        f"whether {fakes[0].url} has a model m, since it lists none;"
        f" whether {fakes[1].url} has a model m, since it is down"
    )
    assert [fake.requests for fake in fakes] == [[], [], []]
    alone = settings(fakes[0])
    assert preflight(MODEL, alone) == "whether the server has a model m, since it lists none"
