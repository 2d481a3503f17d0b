"""The engine that asks a server by OpenAI's protocol: vLLM's, SGLang, llama.cpp, a hosted one.

Nothing about the model is read on this machine, which has its price:

* `choose` sees the twenty likeliest first tokens alone; an option that is not among them has
  probability 0. Whether the server tells log-probabilities is found out when the engine is opened
  (or said by `engine.logprobs`). One that does not is asked for text, and the reply's first word is
  the choice; the log says so, and the replies are cached apart.
* Which weights answer is the server's affair, so replies are cached by its address, or by
  `engine.identity` where one model has several.
* `score` needs a server that rates a given reply, as vLLM's does (`prompt_logprobs`).
* Control tokens inside a text are the server's to handle.
* Where a server's template opens `<think>` and its `</think>` was not reached within `max_tokens`, the
  reasoning can't be told from an answer, unless the server parses it; the reply is marked "truncated".
* A picture is sent as PNG, scaled down to `model.vlm.max_pixels` here; `min_pixels` has no effect.

How requests get to a server, and what becomes of them when it goes away, is said in `servers.py`; where the
key comes from in `connection.py`.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineDead,
    EngineError,
    Generate,
    Generated,
    Prompt,
    Score,
    Scored,
    Usage,
    finish,
)
from scalecap.engines.completions import (
    PROBE,
    body,
    choice,
    first_choice,
    first_tokens,
    schema_arguments,
    text_and_reasoning,
    token_usage,
    tokens_of,
    too_long,
)
from scalecap.engines.connection import Connection, Refused
from scalecap.engines.identity import identity
from scalecap.engines.loop import LoopThread
from scalecap.engines.pictures import Pictures
from scalecap.engines.servers import LATER_LIMIT, Server, Servers
from scalecap.engines.weights import ModelError
from scalecap.settings import EngineSettings, ModelSettings

log = logging.getLogger(__name__)

T = TypeVar("T")
Card = Mapping[str, Any]
"""What a server lists about a model; vLLM's tells its path and its context. Empty where it lists nothing."""

_TOP = 20
"""Most alternatives that OpenAI's protocol tells of a token."""
_WORDS = 8
"""Tokens within which a reply's first word ends, where text must do."""
_CONCURRENCY = 32
"""Requests in flight that keep a server busy."""
_LOOK_TIMEOUT = 5.0
"""Seconds that a server has to list its models when a config is checked."""


async def open_openai(model: ModelSettings, engine: EngineSettings) -> "OpenAIEngine":
    """Connect to a server, see that it has the model and whether it tells log-probabilities.

    Raises:
        ModelError: no server there, it refuses the key, it has not that model, or does not answer.
    """
    if not engine.base_url:
        raise ModelError("engine=openai needs the server's address: engine.base_url=http://localhost:8000/v1")
    server = Server(Connection(engine.base_url), engine.concurrency or _CONCURRENCY, engine.timeout)
    servers = Servers([server], engine.timeout, engine.retries)
    try:
        card = await _card(server.connection, model, engine, engine.timeout)
        if engine.logprobs is not None:
            return OpenAIEngine(servers, model, engine, card, engine.logprobs)
        opened = OpenAIEngine(servers, model, engine, card, logprobs=True)
        if await opened.tells_logprobs():
            return opened
    except ModelError:
        await servers.close()
        raise
    except EngineError as error:
        await servers.close()
        raise ModelError(
            f"{engine.base_url} does not answer a yes/no question to {model.name} ({error});"
            " engine.logprobs=true or false opens it without one"
        ) from error
    log.warning("the server tells no log-probabilities: yes or no is read from the reply's first word")
    return OpenAIEngine(servers, model, engine, card, logprobs=False)


def look(model: ModelSettings, engine: EngineSettings) -> str:
    """Sees within seconds that a server has the model: what could not be seen.

    Raises:
        ModelError: no server there, it refuses the key, or it has other models.
    """

    async def card() -> Card:
        connection = Connection(engine.base_url or "")
        try:
            return await _card(connection, model, engine, _LOOK_TIMEOUT)
        finally:
            await connection.close()

    loop = LoopThread()
    try:
        listed = loop.run(card())
    finally:
        loop.close()
    return "" if listed else f"whether the server has a model {model.name}, since it lists none"


async def _card(connection: Connection, model: ModelSettings, engine: EngineSettings, seconds: float) -> Card:
    """What the server lists about the model. ModelError when it lists others, or can't be asked."""
    try:
        async with asyncio.timeout(seconds):
            listed = (await connection.get("/models"))["data"]
        served = {str(card["id"]): dict(card) for card in listed}
    except (TimeoutError, ConnectionError) as error:
        why = f"within {seconds:g} seconds" if isinstance(error, TimeoutError) else f"({error})"
        raise ModelError(f"no server answers at engine.base_url={connection.shown} {why}") from error
    except Refused as refused:
        if refused.status in (401, 403):
            raise ModelError(_key_refused(connection)) from refused
        log.debug("the server does not list its models: %s", refused)
        return {}
    except (LookupError, TypeError, ValueError) as error:  # some that answer requests list nothing
        log.debug("the server does not list its models: %s", error)
        return {}
    if served and model.name not in served:
        names = ", ".join(list(served)[:10])
        raise ModelError(
            f"{connection.shown} has no model {model.name}: set model.vlm.name to one of {names}"
        )
    return served.get(model.name, {})


def _found(model: ModelSettings, engine: EngineSettings, card: Card, logprobs: bool) -> str:
    """What answers, as far as it can be known from here: the name served, and by whom."""
    parts = [model.name]
    if engine.identity:
        parts.append(f"is={engine.identity}")
    else:
        parts += [f"root={root}"] if (root := card.get("root")) else []
        parts.append(f"at={_address(engine.base_url or '')}")
    return " ".join(parts if logprobs else [*parts, "choices=text"])


def _address(url: str) -> str:
    """The URL without what lets its reader in: a user's name and password, and a digest of its query."""
    parts = urlsplit(url)
    query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{query}"


def _key_refused(connection: Connection) -> str:
    return (
        f"{connection.shown} refuses the key: set the environment variable OPENAI_API_KEY to the server's key"
    )


class OpenAIEngine:
    """Engine over servers that run one model.

    Args:
        card: what they list about the model.
        logprobs: whether choices are read from log-probabilities, or from text.
    """

    def __init__(
        self, servers: Servers, model: ModelSettings, engine: EngineSettings, card: Card, logprobs: bool
    ) -> None:
        self.identity = identity("openai", _found(model, engine, card, logprobs), model, engine)
        self.context_length: int | None = card.get("max_model_len") or model.max_context
        self.concurrency = engine.concurrency or _CONCURRENCY
        self.kv_tokens: int | None = None
        self._servers = servers
        self._model = model
        self._pictures = Pictures(model.max_pixels)
        self._logprobs = logprobs
        self._reasons = False
        """Whether a reply had reasoning, which is logged once."""
        self._body = dict(engine.extra_body)
        if model.chat_template_kwargs:
            self._body["chat_template_kwargs"] = dict(model.chat_template_kwargs)
        self._patience = engine.timeout

    async def generate(self, request: Generate) -> Generated:
        """Write a reply; whether the seed is honoured is the server's affair."""
        sampling = request.sampling
        penalty = sampling.repetition_penalty
        (reply, usage), room = await self._ask(
            request.prompt,
            sampling.max_tokens,
            _reply,
            {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": request.seed % 2**63,
                **({"repetition_penalty": penalty} if penalty != 1 else {}),
                **schema_arguments(request.schema),
            },
        )
        if (ended := reply.get("finish_reason")) == "content_filter":
            raise EngineError("the server's filter withheld the reply")
        text, reasoning = text_and_reasoning(reply["message"])
        if reasoning and not self._reasons:
            self._reasons = True
            log.warning(
                "%s reasons before it answers, which costs tokens and spoils checks that read the first"
                " token; most servers turn it off with"
                " model.<role>.chat_template_kwargs.enable_thinking=false",
                self._model.name,
            )
        why = finish(ended, usage.generated_tokens or room, sampling.max_tokens)
        return Generated(text, why, usage, reasoning)

    async def choose(self, request: Choose) -> Chosen:
        """Compare the options as the reply's first token, or by its first word."""
        if self._logprobs:
            told, usage = await self._first_token(request.prompt)
        else:
            (reply, usage), _ = await self._ask(request.prompt, _WORDS, _reply, {"temperature": 0})
            word = re.search(r"[\w/]+", text_and_reasoning(reply["message"])[0])
            told = [(word.group(), 0.0)] if word else []
        return choice(told, request.options, usage)

    async def tells_logprobs(self) -> bool:
        """Whether the server tells log-probabilities. EngineError when it answers no question at all."""
        try:
            await self._first_token(PROBE)
        except EngineError as error:
            if "logprobs" in str(error):
                return False
            raise
        return True

    async def _first_token(self, prompt: Prompt) -> tuple[list[tuple[str, float]], Usage]:
        """The likeliest first tokens of a reply with their log-probabilities."""
        told = {"temperature": 0, "logprobs": True, "top_logprobs": _TOP}
        read, _ = await self._ask(prompt, 1, lambda answer: (first_tokens(answer), token_usage(answer)), told)
        return read

    async def score(self, request: Score) -> Scored:
        """Rate a text as the reply, by vLLM's extension of the protocol."""
        if not request.text:
            return Scored(())
        answer, _ = await self._ask(
            request.prompt,
            1,
            lambda answer: first_choice(answer) and answer,
            {
                "temperature": 0,
                "continue_final_message": True,
                "add_generation_prompt": False,
                "prompt_logprobs": 0,
            },
            [{"role": "assistant", "content": request.text}],
        )
        entries = answer.get("prompt_logprobs")
        if not entries:
            raise EngineError("the server can't rate a given text: take engine=vllm, or serve with vLLM")
        pieces = [next(iter(entry.values())) for entry in entries if entry]
        tokens = tokens_of(
            [(piece["decoded_token"] or "", piece["logprob"]) for piece in pieces], request.text
        )
        return Scored(tokens, token_usage(answer)._replace(generated_tokens=0))

    async def close(self) -> None:
        """End the connections."""
        await self._servers.close()

    async def _ask(
        self,
        prompt: Prompt,
        room: int,
        read: Callable[[Any], T],
        settings: Mapping[str, Any],
        after: Sequence[dict[str, str]] = (),
    ) -> tuple[T, int]:
        """What `read` makes of a chat completion of at most `room` tokens, fewer where the context is almost
        full, and how many it might have."""
        room = min(room, self.context_length or room)
        picture = await self._pictures.encoded(prompt.image) if prompt.image else None
        server, sent = self._servers.servers[0], settings

        def made(asked: Server) -> list[bytes]:
            nonlocal server, sent
            server, sent = asked, {"model": self._model.name, asked.limit: room, **settings, **self._body}
            if not asked.penalises:
                sent.pop("repetition_penalty", None)
            return body(sent, prompt, picture, after)

        try:
            return await self._servers.complete(made, read), room
        except Refused as refused:
            left = self._adapted(server, sent, refused, room)
        except TimeoutError as error:
            raise EngineError(f"no answer within engine.timeout={self._patience:g} seconds") from error
        except (ConnectionError, ValueError) as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        return await self._ask(prompt, left, read, settings, after)

    def _adapted(self, server: Server, sent: Mapping[str, Any], refused: Refused, room: int) -> int:
        """Tokens to ask the server for after it has refused, once what it does not know is left out.

        Raises EngineError where that can't help.
        """
        at, said = server.connection.shown, refused.words
        if refused.status in (401, 403):
            if "logprobs" in said:  # some hosts tell them of some models alone
                raise EngineError(f"the server refuses the request: {said}") from refused
            raise EngineDead(_key_refused(server.connection)) from refused
        if refused.status == 404:
            raise EngineDead(
                f"{at} has no chat completions of {self._model.name}: "
                f"check engine.base_url and model.vlm.name ({said})"
            ) from refused
        if refused.status not in (400, 422):
            raise EngineError(f"the server can't answer: {refused}") from refused
        if LATER_LIMIT in said and LATER_LIMIT not in sent:
            server.limit = LATER_LIMIT
            return room
        if "repetition_penalty" in said and "repetition_penalty" in sent:
            if server.penalises:
                log.warning("%s knows no repetition_penalty: replies are drawn without it", at)
            server.penalises = False
            return room
        long = too_long(said, self.context_length)
        if long is None:
            raise EngineError(f"the server refuses the request: {said}") from refused
        if 0 < (left := long.limit - long.tokens) < room:
            return left
        raise long from refused


def _reply(answer: Any) -> tuple[Mapping[str, Any], Usage]:
    return first_choice(answer), token_usage(answer)
