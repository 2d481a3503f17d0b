"""Requests to servers that run the same model: tries, deadlines, and servers that go away and come back.

A server that goes away, to be restarted or for good, costs no row: requests wait for it up to
`engine.timeout`, and then the run stops.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from scalecap.engines.base import EngineDead
from scalecap.engines.connection import Connection, Refused

log = logging.getLogger(__name__)

T = TypeVar("T")
Body = Callable[["Server"], Sequence[bytes]]
"""Makes a request's body, in pieces, as a server wants it."""

LATER_LIMIT = "max_completion_tokens"
"""What OpenAI calls max_tokens by now; its newer models refuse the older name, other servers the newer."""
_GARBAGE = 2
"""Times that a request may get an answer that is none."""
_LOOK = 2.0
"""Seconds before each look whether a server is back."""
_LOOK_TIMEOUT = 10.0
"""Seconds that it has to answer then."""
_PAUSE = 0.5
"""Seconds before a second try; doubled with each further one, up to 8."""


class Server:
    """One of them, with what was learnt about it."""

    def __init__(self, connection: Connection, concurrency: int, patience: float) -> None:
        self.connection = connection
        self._patience = patience
        self.free = asyncio.Semaphore(concurrency)
        self.limit = "max_tokens"
        """What it calls the most tokens of a reply."""
        self.penalises = True
        """Whether it knows `repetition_penalty`, which OpenAI's protocol does not."""
        self.trouble: Exception | None = None
        """Why it did not answer when it was looked for."""
        self._back: asyncio.Task[bool] | None = None

    def back(self) -> "asyncio.Task[bool]":
        """Ends when the server answers, for all who wait for it; whether it was away."""
        if self._back is None or self._back.done():
            self._back = asyncio.create_task(self._look())
        return self._back

    async def _look(self) -> bool:
        away = False
        while True:
            # Also before the first look: one that shuts down drops connections while it still answers.
            await asyncio.sleep(_LOOK)
            try:
                async with asyncio.timeout(_LOOK_TIMEOUT):
                    await self.connection.get("/models")
            except (ConnectionError, TimeoutError) as error:
                if not away:
                    log.warning(
                        "no answer from %s: waiting up to %.0f s for it (%s)",
                        self.connection.shown,
                        self._patience,
                        error,
                    )
                away, self.trouble = True, error
            except (Refused, ValueError):
                return away  # whatever it says, it is there
            else:
                return away

    async def close(self) -> None:
        if self._back:
            self._back.cancel()
        await self.connection.close()


class Servers:
    """Sends each request to a server, and again where that may help.

    Args:
        patience: seconds that a request may take with all its tries, and that servers may be away.
        retries: further tries of a request that was refused for the time being; one more where its connection
            was lost.
    """

    def __init__(self, servers: Sequence[Server], patience: float, retries: int) -> None:
        self.servers = servers
        self._patience = patience
        self._retries = retries

    async def complete(self, body: Body, read: Callable[[Any], T]) -> T:
        """What `read` makes of a chat completion; one for which it raises ValueError is asked for once more.

        Raises:
            Refused: the request is refused, for good or once too often.
            ConnectionError, ValueError: no answer came, or none that can be read, and the server is there.
            TimeoutError: the time is up.
            EngineDead: the server stays away.
        """
        (server,) = self.servers
        left, failures, lost, garbage = self._patience, 0, 0, 0
        while True:
            try:
                async with server.free:
                    begun = time.monotonic()
                    try:
                        async with asyncio.timeout(left):
                            try:
                                answer = await server.connection.post("/chat/completions", body(server))
                            except Refused as refused:
                                failures += 1
                                if not refused.passes or failures > self._retries:
                                    raise
                                await asyncio.sleep(
                                    _pause(failures) if refused.pause is None else refused.pause
                                )
                                continue
                    finally:
                        left -= time.monotonic() - begun
                return read(answer)
            except ValueError:
                garbage += 1
                if garbage == _GARBAGE:
                    raise
            except (ConnectionError, TimeoutError) as error:
                if await self._was_away(server):
                    left = self._patience  # what was lost with the server begins anew
                    continue
                lost += 1
                if isinstance(error, TimeoutError) or lost > self._retries + 1:
                    raise

    async def _was_away(self, server: Server) -> bool:
        """Waits until the server answers; whether it was away."""
        back = server.back()
        await asyncio.wait([back], timeout=self._patience)
        if not back.done():
            shown, why = server.connection.shown, server.trouble
            raise EngineDead(f"the server at {shown} is gone: no answer for {self._patience:.0f} s ({why})")
        return back.result()

    async def close(self) -> None:
        """End the connections."""
        for server in self.servers:
            await server.close()


def _pause(failures: int) -> float:
    """Seconds before the next try, not the same for all who were refused together."""
    return min(_PAUSE * 2.0 ** (failures - 1), 8.0) * random.uniform(0.75, 1)
