"""Sends requests to servers of one model: routing, retries, deadlines, health checks and failover.

All requests about an image go to one server, which has the image's tokens in its KV cache: the first in the
order that rendezvous hashing (Thaler and Ravishankar, 1998) gives for this image. While that server is down
the next one is used, so no other image moves when a server leaves or comes back.

A server that goes down, for a restart or for good, costs no row: its requests go to the others. If there is
no other, they wait for it for up to `engine.timeout` seconds, and then the run stops.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

from scalecap.engines.base import EngineDead, EngineError
from scalecap.engines.connection import Connection, StatusError

log = logging.getLogger(__name__)

T = TypeVar("T")
Body = Callable[["Server"], Sequence[bytes]]
"""Makes the JSON body of a request, in pieces, in the form that a server understands."""

MAX_COMPLETION_TOKENS = "max_completion_tokens"
"""OpenAI's current name of `max_tokens`: its newer models reject the old name, other servers the new one."""
_MAX_INVALID_REPLIES = 2
"""A request fails after this many replies that can't be parsed."""
_MAX_TIMEOUTS = 2
"""A request fails after timing out at this many servers that are up."""
_HEALTH_INTERVAL = 2.0
"""Seconds before each health check."""
_HEALTH_TIMEOUT = 10.0
"""Seconds that a server has to answer a health check."""
_STALL_SECONDS = 10.0
"""A server that has requests and answers none of them for this many seconds gets a health check."""
_MAX_FAILED_CHECKS = 3
"""Failed health checks in a row after which a server's requests are sent to other servers."""
_BACKOFF = 0.5
"""Seconds before the first retry; doubled for each further one, up to 8."""
_GATEWAY_ERRORS = (502, 503, 504)
"""Status codes of a gateway whose server is down."""


class Server:
    """One server and what is known about it."""

    def __init__(self, connection: Connection, concurrency: int) -> None:
        self.connection = connection
        self.slots = asyncio.Semaphore(concurrency)
        self.max_tokens_key = "max_tokens"
        """Name of the limit on generated tokens in a request's body."""
        self.unsupported: set[str] = set()
        """Optional arguments of a request that it rejects."""
        self.system_turn = True
        """Whether the model's chat template accepts a system turn."""
        self.up = True
        """Whether requests are sent to it: False from a failed health check to the next successful one."""
        self.last_error: BaseException | None = None
        """Why the last health check failed."""
        self.last_reply = 0.0
        """Time of its last reply to a request (`time.monotonic`)."""
        self.deadlines: set[asyncio.Timeout] = set()
        """Deadlines of its requests in flight."""
        self.outages = 0
        self.answered = 0
        self.rerouted = 0
        """Requests routed to it first that another server answered."""

    @asynccontextmanager
    async def in_flight(self, seconds: float) -> AsyncIterator[None]:
        """Limits the time of a request: TimeoutError when it is over, or `expire_requests` is called."""
        async with asyncio.timeout(seconds) as deadline:
            self.deadlines.add(deadline)
            try:
                yield
            finally:
                self.deadlines.discard(deadline)
        self.last_reply = time.monotonic()

    def expire_requests(self) -> None:
        """Makes all of its requests in flight time out now."""
        for deadline in self.deadlines:
            if not deadline.expired():
                deadline.reschedule(asyncio.get_running_loop().time())


@dataclass
class _RequestState:
    """One request over all of its attempts."""

    order: Sequence[Server]
    time_left: float
    """Seconds."""
    skipped: set[Server] = field(default_factory=set)
    """Servers that did not answer it; the others are tried first."""
    last_error: Exception | None = None
    error_statuses: int = 0
    disconnects: int = 0
    timeouts: int = 0
    invalid_replies: int = 0

    def candidates(self) -> list[Server]:
        """The servers to try, best first."""
        return [server for server in self.order if server.up and server not in self.skipped]


class ServerPool:
    """Sends each request to a server and retries it, there or on another one, where that may help.

    Args:
        timeout: seconds that a request may take over all of its attempts, and that servers may be down.
        retries: further attempts after a temporary error status; one more after a lost connection.
    """

    def __init__(self, servers: Sequence[Server], timeout: float, retries: int) -> None:
        self.servers = servers
        self.readmit: Callable[[Server], Awaitable[None]] | None = None
        """Called with a server that is back; raises EngineError if it can't be used."""
        self._timeout = timeout
        self._retries = retries
        self._health_checks: dict[Server, asyncio.Task[bool]] = {}
        self._watchdog: asyncio.Task[None] | None = None

    def order(self, key: str) -> Sequence[Server]:
        """The servers in the order in which they are tried.

        Args:
            key: hash of the image, or the text of a prompt without one.
        """
        if len(self.servers) == 1:
            return self.servers

        def weight(server: Server) -> bytes:
            return blake2b(f"{server.connection.url} {key}".encode("utf-8", "replace")).digest()

        return sorted(self.servers, key=weight, reverse=True)

    async def complete(self, order: Sequence[Server], body: Body, read: Callable[[Any], T]) -> T:
        """Sends a chat completion request and returns its parsed reply.

        Args:
            order: the servers to use, each if those before it are down.
            read: parses the reply's JSON; must not return None. If it raises ValueError the request is sent
                once more.

        Raises:
            StatusError: the server rejected the request, for good or once too often.
            ConnectionError: the connection was lost, though a server is up.
            ValueError: the replies could not be parsed.
            TimeoutError: `engine.timeout` is over.
            EngineDead: all servers stay down.
        """
        if len(self.servers) > 1 and self._watchdog is None:
            self._watchdog = asyncio.create_task(self._watch())
        request = _RequestState(order, self._timeout)
        while True:
            candidates = request.candidates()
            if not candidates:
                await self._wait_for_server(request)
                continue
            server, alternative = candidates[0], len(candidates) > 1
            try:
                reply = await self._attempt(request, server, alternative, body, read)
            except ValueError:
                request.invalid_replies += 1
                if request.invalid_replies == _MAX_INVALID_REPLIES:
                    raise
            except (ConnectionError, TimeoutError) as error:
                request.last_error = error
                request.skipped.add(server)
                self._check_health(server)
                request.timeouts += isinstance(error, TimeoutError) and server.up
                if request.timeouts == _MAX_TIMEOUTS:
                    raise
                if alternative:
                    request.time_left = self._timeout
            else:
                if reply is not None:
                    server.answered += 1
                    order[0].rerouted += server is not order[0]
                    return reply

    async def _attempt(
        self, request: _RequestState, server: Server, alternative: bool, body: Body, read: Callable[[Any], T]
    ) -> T | None:
        """Sends a request once; None if another attempt should follow.

        Args:
            alternative: whether another server can take the request.
        """
        async with server.slots:
            if not server.up:  # it went down while this request waited for a slot
                return None
            started = time.monotonic()
            try:
                async with server.in_flight(request.time_left):
                    try:
                        reply = await server.connection.post("/chat/completions", body(server))
                    except StatusError as error:
                        await self._handle_status(request, server, alternative, error)
                        return None
            finally:
                request.time_left -= time.monotonic() - started
        return read(reply)

    async def _handle_status(
        self, request: _RequestState, server: Server, alternative: bool, error: StatusError
    ) -> None:
        """Prepares the next attempt after an error status, or raises the error if there is to be none."""
        request.error_statuses += 1
        if alternative and _rejects_everything(error):
            self.mark_down(server, error)
        elif not error.retryable or request.error_statuses > self._retries:
            raise error
        elif alternative and error.status >= 500:
            request.skipped.add(server)
        else:
            request.skipped.clear()
            seconds = error.retry_after
            await asyncio.sleep(_backoff(request.error_statuses) if seconds is None else seconds)

    async def _wait_for_server(self, request: _RequestState) -> None:
        """Waits until a server can be tried again, or raises the last error if there is no attempt left."""
        unusable = [server for server in request.order if not server.up or server in request.skipped]
        if await self._wait_for_any(unusable):
            # The server lost the request when it went down: the request starts over.
            request.time_left, request.timeouts = self._timeout, 0
        else:
            request.disconnects += 1
            if request.disconnects > self._retries + 1 or isinstance(request.last_error, TimeoutError):
                assert request.last_error
                raise request.last_error
        request.skipped.clear()

    def notes(self) -> list[str]:
        """Lines for the run's summary about several servers, since the last call; resets the counts."""
        if len(self.servers) == 1:
            return []
        answered = ", ".join(f"{each.answered:,} by {each.connection.display_url}" for each in self.servers)
        lines = [f"Requests answered: {answered}."]
        for server in self.servers:
            if server.outages or server.rerouted:
                times = {0: "less than one health check", 1: "once"}.get(
                    server.outages, f"{server.outages} times"
                )
                lines.append(
                    f"{server.connection.display_url} was away ({times});"
                    f" others answered {server.rerouted:,} of its requests."
                )
            server.answered = server.rerouted = 0
            server.outages = 0 if server.up else 1
        return lines

    def mark_down(self, server: Server, why: BaseException) -> None:
        """Sends no requests to the server until a health check succeeds."""
        if server.up:
            server.up = False
            server.outages += 1
            url = server.connection.display_url
            if len(self.servers) == 1:
                log.warning("no answer from %s: waiting up to %.0f s for it (%s)", url, self._timeout, why)
            else:
                log.warning("%s is down; its requests go to other servers (%s)", url, why)
        server.last_error = why
        self._check_health(server)

    def _check_health(self, server: Server) -> "asyncio.Task[bool]":
        """The health check in progress, or a new one: ends when the server is up; True if it was down."""
        task = self._health_checks.get(server)
        if task is None or task.done():
            task = self._health_checks[server] = asyncio.create_task(self._poll_until_up(server))
        return task

    async def _poll_until_up(self, server: Server) -> bool:
        failed = 0
        while True:
            # Also before the first check: a server that shuts down drops connections while it still answers.
            await asyncio.sleep(_HEALTH_INTERVAL)
            error = await self._health_error(server)
            if error is None:
                break
            self.mark_down(server, error)
            failed += 1
            if failed >= _MAX_FAILED_CHECKS and len(self.servers) > 1:
                server.expire_requests()
        was_down, server.up = not server.up, True
        if was_down:
            log.warning("%s is up again", server.connection.display_url)
        return was_down

    async def _health_error(self, server: Server) -> Exception | None:
        """One health check: why the server can't be used, or None."""
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT):
                if self.readmit and not server.up:
                    await self.readmit(server)
                else:
                    await server.connection.get("/models")
        except (ConnectionError, TimeoutError, EngineError) as error:
            return error
        except StatusError as error:
            # Any other status comes from the server itself, so it is up.
            return error if error.status in _GATEWAY_ERRORS else None
        except ValueError:
            return None
        return None

    async def _wait_for_any(self, servers: Sequence[Server]) -> bool:
        """Waits until a health check of one of the servers succeeds; True if that server was down.

        Raises EngineDead if none succeeds within the timeout.
        """
        checks = [self._check_health(server) for server in servers]
        done, _ = await asyncio.wait(checks, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            down = ", ".join(f"{each.connection.display_url} ({each.last_error})" for each in servers)
            if len(self.servers) == 1:
                raise EngineDead(f"the server at {down} is gone: no answer for {self._timeout:.0f} s")
            raise EngineDead(f"all servers are gone: {down}: no answer for {self._timeout:.0f} s")
        return any(check.result() for check in done)

    async def _watch(self) -> None:
        """Checks the health of servers that have requests and answer none: their machines may be gone."""
        while True:
            await asyncio.sleep(_STALL_SECONDS)
            for server in self.servers:
                if server.deadlines and time.monotonic() - server.last_reply > _STALL_SECONDS:
                    self._check_health(server)

    async def close(self) -> None:
        """Stops health checks and closes the connections."""
        tasks = [*self._health_checks.values(), *([self._watchdog] if self._watchdog else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.connection.close()


def _rejects_everything(error: StatusError) -> bool:
    """Whether the server rejects all requests, because it has another model or wants another key."""
    return error.status in (401, 403, 404) and "logprobs" not in error.message


def _backoff(failures: int) -> float:
    """Seconds before the next attempt, with jitter."""
    return min(_BACKOFF * 2.0 ** (failures - 1), 8.0) * random.uniform(0.75, 1)
