"""HTTP to one server: connections that are kept, JSON both ways, and what its refusals say.

The key comes from the environment variable OPENAI_API_KEY, and from nowhere else; a user and password in the
address (`https://user:password@host`) take its place. No message has any of them. HTTP_PROXY, HTTPS_PROXY,
ALL_PROXY and NO_PROXY hold as elsewhere, and so do SSL_CERT_FILE and SSL_CERT_DIR.
"""

import base64
import email.utils
import json
import os
import ssl
import time
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import certifi

_CONNECT = 30.0
"""Seconds within which a connection stands."""
_IDLE = 2.0
"""Seconds that an idle connection is kept: less than servers do, who lose what is sent as they close it."""
_WORDS = 2000
"""Characters of a refusal that are told."""


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, words: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status}: {words}")
        self.status = status
        self.words = words
        self.pause = _pause(headers)
        """Seconds that it wants to be left alone, if it says so."""
        told = headers.get("x-should-retry")
        self.passes = told == "true" or (told != "false" and (status in (408, 409, 429) or status >= 500))
        """Whether the same request may be answered later."""


class Connection:
    """Keeps connections to a server open, as many as there are requests in flight.

    Args:
        url: up to and with `/v1`; a query is sent with each request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        """The address, without what lets its reader in."""
        self._query = f"?{parts.query}" if parts.query else ""
        key = f"Bearer {os.environ.get('OPENAI_API_KEY') or 'none'}"
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            key = f"Basic {base64.b64encode(user.encode()).decode()}"
        headers = {"Authorization": key, "Content-Type": "application/json", "User-Agent": "scalecap"}
        for name, variable in (("Organization", "OPENAI_ORG_ID"), ("Project", "OPENAI_PROJECT_ID")):
            if told := os.environ.get(variable):
                headers[f"OpenAI-{name}"] = told
        self._proxy = _proxy(parts.scheme, parts.hostname or "")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE, ssl=_trusted(parts.scheme)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_reuse()],
            headers=headers,
        )

    async def get(self, path: str) -> Any:
        """The JSON at a path below the address. Raises as `post` does."""
        return await self._send("GET", path, None)

    async def post(self, path: str, body: Sequence[bytes]) -> Any:
        """The answer to a body of JSON in pieces, which are sent as they are.

        Raises:
            Refused: it is an error.
            ConnectionError: there is none, since there was no connection, or it was lost.
            ValueError: it is no JSON.
        """
        return await self._send("POST", path, body[0] if len(body) == 1 else _Pieces(body))

    async def _send(self, method: str, path: str, body: Any) -> Any:
        reused: list[bool] = []
        try:
            try:
                response, answer = await self._exchange(method, path, body, reused)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not reused:
                    raise
                # A server may close an idle connection just as a request goes out on it.
                response, answer = await self._exchange(method, path, body, reused)
        except aiohttp.ServerTimeoutError as error:  # its words have the address as it was given
            raise ConnectionError(f"no connection within {_CONNECT:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        if response.status >= 400:
            raise Refused(response.status, _refusal(answer), response.headers)
        return json.loads(answer)

    async def _exchange(
        self, method: str, path: str, body: Any, reused: list[bool]
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """An answer; `reused` is filled where the request goes over a connection that was idle."""
        url = f"{self.shown}{path}{self._query}"
        async with self._session.request(
            method, url, data=body, proxy=self._proxy, trace_request_ctx=reused
        ) as response:
            return response, await response.read()

    async def close(self) -> None:
        await self._session.close()


class _Pieces(aiohttp.Payload):
    """A body that is not copied to be sent; a picture may have megabytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(pieces, content_type="application/json")
        self._size = sum(map(len, pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        for piece in self._value:
            await writer.write(piece)


def _reuse() -> aiohttp.TraceConfig:
    """Tells a request that its connection was idle before."""

    async def note(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.append(True)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace


def _refusal(answer: bytes) -> str:
    """What the server says of a request that it refuses, wherever it says it."""
    try:
        told = json.loads(answer)
    except ValueError:
        told = answer.decode("utf-8", "replace")
    words = told
    if isinstance(told, Mapping):
        error = told.get("error") or told
        parts = [error, told] if isinstance(error, Mapping) else [{"message": error}, told]
        # OpenAI's own `message` and `param`; FastAPI's servers say it in `detail`.
        found = [part.get(name) for name in ("message", "detail", "param") for part in parts]
        words = ": ".join(dict.fromkeys(str(each) for each in found if each)) or told
    return " ".join(str(words).split())[:_WORDS]


def _pause(headers: Mapping[str, str]) -> float | None:
    told = headers.get("Retry-After", "")
    try:
        if milliseconds := headers.get("Retry-After-Ms"):
            return float(milliseconds) / 1000
        return float(told)
    except ValueError:
        date = email.utils.parsedate_tz(told)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host."""
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(host):
        return None
    return proxies.get(scheme) or proxies.get("all")


def _trusted(scheme: str) -> ssl.SSLContext | bool:
    """Certificates that SSL_CERT_FILE or SSL_CERT_DIR name, else this machine's and Mozilla's."""
    if scheme != "https":
        return True
    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        context.load_verify_locations(certifi.where())
    return context
