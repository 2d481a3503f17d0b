"""Requests to servers that run the same model: which one is asked, tries, deadlines, servers that go away.

All requests about a picture go to one server, which has its tokens in the KV cache: the first of the order
that rendezvous hashing (Thaler and Ravishankar, 1998) gives to the servers for this picture. While it is away
the next one is asked, so that no other picture moves when a server leaves or comes back.

A server that goes away, to be restarted or for good, costs no row: its requests go to the others. Where there
is no other they wait for it up to `engine.timeout`, and then the run stops.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any, TypeVar

from scalecap.engines.base import EngineDead, EngineError
from scalecap.engines.connection import Connection, Refused

log = logging.getLogger(__name__)

T = TypeVar("T")
Body = Callable[["Server"], Sequence[bytes]]
"""Makes a request's body, in pieces, as a server wants it."""

LATER_LIMIT = "max_completion_tokens"
"""What OpenAI calls max_tokens by now; its newer models refuse the older name, other servers the newer."""
_GARBAGE = 2
"""Times that a request may get an answer that is none."""
_LATE = 2
"""Servers that a request may keep waiting."""
_HEALTH_INTERVAL = 2.0
"""Seconds before each look whether a server is back."""
_HEALTH_TIMEOUT = 10.0
"""Seconds that it has to answer then."""
_STALL_SECONDS = 10.0
"""Seconds without any answer to its requests after which one of several servers is looked at."""
_LOOKS = 3
"""Looks in vain after which the requests that it has are sent to others."""
_BACKOFF = 0.5
"""Seconds before a second try; doubled with each further one, up to 8."""
_GATEWAY = (502, 503, 504)
"""What a gateway says whose server is away."""


class Server:
    """One of them, with what was learnt about it."""

    def __init__(self, connection: Connection, concurrency: int) -> None:
        self.connection = connection
        self.free = asyncio.Semaphore(concurrency)
        self.limit = "max_tokens"
        """What it calls the most tokens of a reply."""
        self.penalises = True
        """Whether it knows `repetition_penalty`, which OpenAI's protocol does not."""
        self.up = True
        """Whether it is asked: not from a look in vain until it is back."""
        self.trouble: BaseException | None = None
        """Why it did not answer when it was looked at."""
        self.heard = 0.0
        """When it last answered a request (`time.monotonic`)."""
        self.deadlines: set[asyncio.Timeout] = set()
        """Of the requests that it has."""
        self.times_away = 0
        self.answered = 0
        self.moved = 0
        """Requests that were its own and that others answered."""

    @asynccontextmanager
    async def working(self, seconds: float) -> AsyncIterator[None]:
        """A request's time at the server: TimeoutError when it is over, or the server is given up."""
        async with asyncio.timeout(seconds) as deadline:
            self.deadlines.add(deadline)
            try:
                yield
            finally:
                self.deadlines.discard(deadline)
        self.heard = time.monotonic()

    def give_up(self) -> None:
        """Ends the wait of all requests that it has."""
        for deadline in self.deadlines:
            if not deadline.expired():
                deadline.reschedule(asyncio.get_running_loop().time())


class Servers:
    """Sends each request to a server, and again, there or elsewhere, where that may help.

    Args:
        patience: seconds that a request may take with all its tries, and that servers may be away.
        retries: further tries of a request that was refused for the time being; one more where its connection
            was lost.
    """

    def __init__(self, servers: Sequence[Server], patience: float, retries: int) -> None:
        self.servers = servers
        self.accept: Callable[[Server], Awaitable[None]] | None = None
        """Called of a server that is back; raises EngineError when it can't be used."""
        self._patience = patience
        self._retries = retries
        self._looks: dict[Server, asyncio.Task[bool]] = {}
        self._watching: asyncio.Task[None] | None = None

    def order(self, key: str) -> Sequence[Server]:
        """The servers in the order in which they are asked about a picture, or a text."""
        if len(self.servers) == 1:
            return self.servers

        def weight(server: Server) -> bytes:
            return blake2b(f"{server.connection.url} {key}".encode("utf-8", "replace")).digest()

        return sorted(self.servers, key=weight, reverse=True)

    async def complete(self, order: Sequence[Server], body: Body, read: Callable[[Any], T]) -> T:
        """What `read` makes of a chat completion; one for which it raises ValueError is asked for once more.

        Args:
            order: the servers to ask, each where those before it are away.

        Raises:
            Refused: the request is refused, for good or once too often.
            ConnectionError, ValueError: no answer came, or none that can be read, and a server is there.
            TimeoutError: the time is up.
            EngineDead: all servers stay away.
        """
        if len(self.servers) > 1 and self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        left, failures, lost, late, garbage = self._patience, 0, 0, 0, 0
        passed: set[Server] = set()
        error: Exception | None = None
        while True:
            server = next((each for each in order if each.up and each not in passed), None)
            if server is None:
                if await self._any_back([each for each in order if not each.up or each in passed]):
                    left, late = self._patience, 0  # what was lost with the server begins anew
                elif (lost := lost + 1) > self._retries + 1 or isinstance(error, TimeoutError):
                    assert error
                    raise error
                passed.clear()
                continue
            other = any(each.up and each not in passed for each in order if each is not server)
            try:
                async with server.free:
                    if not server.up:  # it went while this one waited
                        continue
                    begun = time.monotonic()
                    try:
                        async with server.working(left):
                            try:
                                answer = await server.connection.post("/chat/completions", body(server))
                            except Refused as refused:
                                failures += 1
                                if other and _unfit(refused):
                                    self.leave(server, refused)
                                    continue
                                if not refused.passes or failures > self._retries:
                                    raise
                                if other and refused.status >= 500:
                                    passed.add(server)
                                    continue
                                passed.clear()
                                await asyncio.sleep(
                                    _pause(failures) if refused.pause is None else refused.pause
                                )
                                continue
                    finally:
                        left -= time.monotonic() - begun
                made = read(answer)
            except ValueError:
                garbage += 1
                if garbage == _GARBAGE:
                    raise
            except (ConnectionError, TimeoutError) as raised:
                error = raised
                passed.add(server)
                self._look(server)
                late += isinstance(error, TimeoutError) and server.up
                if late == _LATE:
                    raise
                if other:
                    left = self._patience
            else:
                server.answered += 1
                order[0].moved += server is not order[0]
                return made

    def notes(self) -> list[str]:
        """What a run is to tell of several servers since it was last asked."""
        if len(self.servers) == 1:
            return []
        answered = ", ".join(f"{each.answered:,} by {each.connection.shown}" for each in self.servers)
        found = [f"Requests answered: {answered}."]
        for each in self.servers:
            if each.times_away or each.moved:
                times = {0: "less than a look takes", 1: "once"}.get(
                    each.times_away, f"{each.times_away} times"
                )
                at, moved = each.connection.shown, f"{each.moved:,}"
                found.append(f"{at} was away ({times}); others answered {moved} of its requests.")
        for each in self.servers:
            each.answered = each.moved = 0
            each.times_away = 0 if each.up else 1
        return found

    def leave(self, server: Server, why: BaseException) -> None:
        """Asks the server nothing until it is back, which is looked for."""
        if server.up:
            server.up = False
            server.times_away += 1
            at = server.connection.shown
            if len(self.servers) == 1:
                log.warning("no answer from %s: waiting up to %.0f s for it (%s)", at, self._patience, why)
            else:
                log.warning("%s is away, and its requests go to other servers (%s)", at, why)
        server.trouble = why
        self._look(server)

    def _look(self, server: Server) -> "asyncio.Task[bool]":
        """Ends when the server answers, for all who wait for it; whether it was away."""
        look = self._looks.get(server)
        if look is None or look.done():
            look = self._looks[server] = asyncio.create_task(self._looking(server))
        return look

    async def _looking(self, server: Server) -> bool:
        in_vain = 0
        while True:
            # Also before the first look: one that shuts down drops connections while it still answers.
            await asyncio.sleep(_HEALTH_INTERVAL)
            try:
                async with asyncio.timeout(_HEALTH_TIMEOUT):
                    if self.accept and not server.up:
                        await self.accept(server)
                    else:
                        await server.connection.get("/models")
            except (ConnectionError, TimeoutError, EngineError) as error:
                why: Exception = error
            except Refused as refused:
                if refused.status not in _GATEWAY:
                    break  # whatever it says, it is there
                why = refused
            except ValueError:
                break
            else:
                break
            self.leave(server, why)
            in_vain += 1
            if in_vain >= _LOOKS and len(self.servers) > 1:
                server.give_up()
        away, server.up = not server.up, True
        if away:
            log.warning("%s is back", server.connection.shown)
        return away

    async def _any_back(self, servers: Sequence[Server]) -> bool:
        """Waits until one of the servers answers; whether it was away."""
        looks = [self._look(each) for each in servers]
        back, _ = await asyncio.wait(looks, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        if not back:
            gone = ", ".join(f"{each.connection.shown} ({each.trouble})" for each in servers)
            what = "the server at" if len(self.servers) == 1 else "all servers are gone:"
            verb = " is gone" if len(self.servers) == 1 else ""
            raise EngineDead(f"{what} {gone}{verb}: no answer for {self._patience:.0f} s")
        return any(look.result() for look in back)

    async def _watch(self) -> None:
        """Looks at servers that have requests and answer none: their machines may have vanished."""
        while True:
            await asyncio.sleep(_STALL_SECONDS)
            for server in self.servers:
                if server.deadlines and time.monotonic() - server.heard > _STALL_SECONDS:
                    self._look(server)

    async def close(self) -> None:
        """End the connections."""
        tasks = [*self._looks.values(), *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.connection.close()


def _unfit(refused: Refused) -> bool:
    """Whether a server refuses all that it is asked, for another model or another key."""
    return refused.status in (401, 403, 404) and "logprobs" not in refused.words


def _pause(failures: int) -> float:
    """Seconds before the next try, not the same for all who were refused together."""
    return min(_BACKOFF * 2.0 ** (failures - 1), 8.0) * random.uniform(0.75, 1)
