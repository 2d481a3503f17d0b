"""HTTP to one server: requests, environment variables and error responses."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')

from aiohttp import web
from aiohttp.test_utils import TestServer as Local

from scalecap.engines.connection import Connection, StatusError


class Seen:
    """A server that records its requests."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answer: Callable[[], web.StreamResponse] = lambda: web.json_response({"ok": True})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return self.answer()


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def address(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The server's, without a scheme."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    app = web.Application(client_max_size=1 << 24)
    app.add_routes([web.route("*", "/{path:.*}", seen.handle)])
    async with Local(app) as server:
        yield f"{server.host}:{server.port}/v1"


async def test_pieces_are_sent_as_one_body_over_one_connection(seen: Seen, address: str) -> None:
    connection = Connection(f"http://{address}/")
    image = b"x" * 3_000_000
    for _ in range(3):
        assert await connection.post("/chat", [b'{"a":"', image, b'"}']) == {"ok": True}
    assert await connection.get("/models") == {"ok": True}
    await connection.close()
    assert seen.bodies[:3] == [b'{"a":"' + image + b'"}'] * 3
    assert {request.headers["Content-Length"] for request in seen.requests[:3]} == {"3000008"}
    assert [request.path_qs for request in seen.requests] == ["/v1/chat"] * 3 + ["/v1/models"]
    assert len({id(request.transport) for request in seen.requests}) == 1


async def test_credentials(seen: Seen, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sent(url: str) -> web.Request:
        connection = Connection(url)
        await connection.get("/models")
        await connection.close()
        assert "secret" not in connection.display_url
        return seen.requests[-1]

    assert (await sent(f"http://{address}")).headers["Authorization"] == "Bearer none"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "us")
    request = await sent(f"http://{address}?version=2")
    assert (request.headers["Authorization"], request.headers["OpenAI-Organization"]) == (
        "Bearer secret",
        "us",
    )
    assert request.path_qs == "/v1/models?version=2"
    basic = (await sent(f"http://me:sec%20ret@{address}")).headers["Authorization"]
    assert base64.b64decode(basic.removeprefix("Basic ")) == b"me:sec ret"


async def test_netrc_is_not_read(
    seen: Seen, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password wrong")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", "mine")
    connection = Connection(f"http://{address}")
    await connection.get("/models")
    await connection.close()
    assert seen.requests[0].headers["Authorization"] == "Bearer mine"


@pytest.mark.parametrize("passed", [True, False])
async def test_the_environments_proxy(
    seen: Seen, address: str, monkeypatch: pytest.MonkeyPatch, passed: bool
) -> None:
    """The server acts as the proxy of a host that does not exist."""
    monkeypatch.setenv("http_proxy", f"http://me:pass@{address.partition('/')[0]}")
    monkeypatch.setenv("no_proxy", "other.invalid" if passed else "nowhere.invalid")
    connection = Connection("http://nowhere.invalid/v1")
    if passed:
        await connection.get("/models")
        assert str(seen.requests[0].url) == "http://nowhere.invalid/v1/models"
        assert seen.requests[0].headers["Proxy-Authorization"].startswith("Basic ")
    else:
        with pytest.raises(ConnectionError, match=r"nowhere\.invalid"):
            await connection.get("/models")
        assert seen.requests == []
    await connection.close()


YEAR = pytest.approx(365 * 24 * 3600, abs=3600)
LATER = format_datetime(datetime.now(UTC) + timedelta(days=365), usegmt=True)


@pytest.mark.parametrize(
    ("status", "headers", "retryable", "retry_after"),
    [
        (429, {}, True, None),
        (429, {"Retry-After": "2.5"}, True, 2.5),
        (429, {"Retry-After": "9", "Retry-After-Ms": "20"}, True, 0.02),
        (503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, True, 0.0),
        pytest.param(503, {"Retry-After": LATER}, True, YEAR, id="in a year"),  # an id that workers agree on
        (500, {"Retry-After": "soon"}, True, None),
        (500, {"x-should-retry": "false"}, False, None),
        (400, {"x-should-retry": "true"}, True, None),
        (404, {}, False, None),
    ],
    ids=str,
)
async def test_whether_and_when_to_retry(
    seen: Seen, address: str, status: int, headers: dict[str, str], retryable: bool, retry_after: Any
) -> None:
    seen.answer = lambda: web.json_response({"error": "no"}, status=status, headers=headers)
    connection = Connection(f"http://{address}")
    with pytest.raises(StatusError, match=f"{status}: no") as caught:
        await connection.get("/models")
    assert caught.value.retryable == retryable
    assert caught.value.retry_after == retry_after
    await connection.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": {"message": "bad\nvalue", "param": "seed", "code": 400}}, "bad value: seed"),
        ({"object": "error", "message": "bad value", "code": 400}, "bad value"),
        ({"detail": "Unexpected fields: {'seed'}"}, "Unexpected fields: {'seed'}"),
        ({"detail": [{"loc": ["seed"]}]}, "[{'loc': ['seed']}]"),
        ({"error": "bad value"}, "bad value"),
        ({"code": 1}, "{'code': 1}"),
        ([], "[]"),
        ("<html>busy</html>", "<html>busy</html>"),
        ("", ""),
        ("x" * 5000, "x" * 2000),
    ],
    ids=lambda each: str(each)[:20],
)
async def test_error_messages(seen: Seen, address: str, answer: Any, message: str) -> None:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    seen.answer = lambda: web.Response(text=text, status=400)
    connection = Connection(f"http://{address}")
    with pytest.raises(StatusError) as caught:
        await connection.post("/chat", [b"{}"])
    assert caught.value.message == message
    await connection.close()


async def test_an_idle_connection_that_the_server_closes_is_reopened():
    sent: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            if len(sent) == 1 and b"GET" not in head:
                sent.append(b"")
                writer.transport.abort()
                return
            size = int(dict(re.findall(rb"(Content-Length): (\d+)", head)).get(b"Content-Length", 0))
            sent.append(await reader.readexactly(size))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = Connection(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    assert await connection.get("/models") is True
    assert await connection.post("/chat/completions", [b'{"a": ', b"1}"]) is True
    assert sent == [b"", b"", b'{"a": 1}']
    await connection.close()
    server.close()
