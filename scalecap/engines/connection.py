"""HTTP connection to one server: keep-alive, JSON in both directions, error statuses.

The API key comes from the environment variable OPENAI_API_KEY only; a user and password in the address
(`https://user:password@host`) take its place. No message contains any of them. HTTP_PROXY, HTTPS_PROXY,
ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR work as usual.
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

_CONNECT_TIMEOUT = 30.0
"""Seconds."""
_KEEPALIVE = 2.0
"""Seconds that an idle connection is kept: less than servers do, to avoid sending as they close it."""
_MAX_MESSAGE = 2000
"""Characters of an error message that are kept."""


class StatusError(Exception):
    """The server answered with an HTTP error status."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = _retry_after(headers)
        """Seconds to wait before a retry; None if the server does not say."""
        should_retry = headers.get("x-should-retry")
        temporary = status in (408, 409, 429) or status >= 500
        self.retryable = should_retry == "true" or (should_retry != "false" and temporary)
        """Whether the same request may succeed later."""


class Connection:
    """Connections to one server, as many as there are requests in flight.

    Args:
        url: address up to and including `/v1`; a query string is sent with each request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.display_url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        """The address without credentials and query, for messages."""
        self._query = f"?{parts.query}" if parts.query else ""
        authorization = f"Bearer {os.environ.get('OPENAI_API_KEY') or 'none'}"
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = f"Basic {base64.b64encode(user.encode()).decode()}"
        headers = {
            "Authorization": authorization,
            "Content-Type": "application/json",
            "User-Agent": "scalecap",
        }
        for name, variable in (("Organization", "OPENAI_ORG_ID"), ("Project", "OPENAI_PROJECT_ID")):
            if value := os.environ.get(variable):
                headers[f"OpenAI-{name}"] = value
        self._proxy = _proxy_url(parts.scheme, parts.hostname or "")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEPALIVE, ssl=_ssl_context(parts.scheme)
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_trace_reuse()],
            headers=headers,
        )

    async def get(self, path: str) -> Any:
        """The JSON at a path below the address. Raises as `post` does."""
        return await self._send("GET", path, None)

    async def post(self, path: str, body: Sequence[bytes]) -> Any:
        """Sends a JSON body, given in pieces, and returns the JSON of the response.

        Raises:
            StatusError: the response has an error status.
            ConnectionError: no connection could be made, or it was lost.
            ValueError: the response is not JSON.
        """
        return await self._send("POST", path, body[0] if len(body) == 1 else _PiecesPayload(body))

    async def _send(self, method: str, path: str, body: Any) -> Any:
        reused: list[bool] = []
        try:
            try:
                response, content = await self._exchange(method, path, body, reused)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not reused:
                    raise
                # A server may close an idle connection just as a request goes out on it.
                response, content = await self._exchange(method, path, body, reused)
        except aiohttp.ServerTimeoutError as error:  # its message contains the address with credentials
            raise ConnectionError(f"no connection within {_CONNECT_TIMEOUT:g} seconds") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        if response.status >= 400:
            raise StatusError(response.status, _error_message(content), response.headers)
        return json.loads(content)

    async def _exchange(
        self, method: str, path: str, body: Any, reused: list[bool]
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """A response and its content; `reused` gets an entry if the connection had been idle before."""
        url = f"{self.display_url}{path}{self._query}"
        async with self._session.request(
            method, url, data=body, proxy=self._proxy, trace_request_ctx=reused
        ) as response:
            return response, await response.read()

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()


class _PiecesPayload(aiohttp.Payload):
    """A body in pieces that are not joined before they are sent: an image may have megabytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(pieces, content_type="application/json")
        self._size = sum(map(len, pieces))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._value).decode(encoding, errors)

    async def write(self, writer: Any) -> None:
        for piece in self._value:
            await writer.write(piece)


def _trace_reuse() -> aiohttp.TraceConfig:
    """Notes in a request's trace context that its connection had been idle before."""

    async def note(session: Any, context: Any, params: Any) -> None:
        context.trace_request_ctx.append(True)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace


def _error_message(content: bytes) -> str:
    """The message in an error response: OpenAI's `error.message` and `param`, or FastAPI's `detail`."""
    try:
        parsed = json.loads(content)
    except ValueError:
        parsed = content.decode("utf-8", "replace")
    message = parsed
    if isinstance(parsed, Mapping):
        error = parsed.get("error") or parsed
        parts = [error, parsed] if isinstance(error, Mapping) else [{"message": error}, parsed]
        found = [part.get(name) for name in ("message", "detail", "param") for part in parts]
        message = ": ".join(dict.fromkeys(str(each) for each in found if each)) or parsed
    return " ".join(str(message).split())[:_MAX_MESSAGE]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, of the headers Retry-After-Ms or Retry-After (seconds or a date)."""
    value = headers.get("Retry-After", "")
    try:
        if milliseconds := headers.get("Retry-After-Ms"):
            return float(milliseconds) / 1000
        return float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def _proxy_url(scheme: str, host: str) -> str | None:
    """The proxy that the environment sets for a host."""
    proxies = urllib.request.getproxies()
    if urllib.request.proxy_bypass(host):
        return None
    return proxies.get(scheme) or proxies.get("all")


def _ssl_context(scheme: str) -> ssl.SSLContext | bool:
    """Trusts the certificates of SSL_CERT_FILE or SSL_CERT_DIR, else the system's and certifi's."""
    if scheme != "https":
        return True
    context = ssl.create_default_context()
    if not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        context.load_verify_locations(certifi.where())
    return context
