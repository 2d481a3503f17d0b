"""The engine that asks a server by OpenAI's protocol: vLLM's, SGLang, llama.cpp, a hosted one.

Nothing about the model is read on this machine, which has its price:

* `choose` sees the twenty likeliest first tokens alone; an option that is not among them has
  probability 0. Of a server that tells fewer, but three at least, as many are read, and a choice is none
  where the option that is missing might be likely. Whether the server tells log-probabilities, and how many,
  is found out when the engine is opened (or said by `engine.logprobs`). One that does not is asked for text,
  and the reply's first word is the choice. The log says so, and the replies are cached apart.
* Which weights answer is the server's affair, so replies are cached by its address, or by those of several
  servers, or by `engine.identity`.
* `score` needs a server that rates a given reply, as vLLM's does (`prompt_logprobs`).
* Control tokens inside a text are the server's to handle.
* Where a server's template opens `<think>` and its `</think>` was not reached within `max_tokens`, the
  reasoning can't be told from an answer, unless the server parses it; the reply is marked "truncated".
* A picture is sent as PNG, or as JPEG with `engine.jpeg_quality`, scaled down to `model.vlm.max_pixels` here;
  `min_pixels` has no effect.

How requests get to a server, and what becomes of them when it goes away, is said in `servers.py`; where the
key comes from in `connection.py`.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

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
    most_alternatives,
    schema_arguments,
    text_and_reasoning,
    token_usage,
    tokens_of,
    too_long,
)
from scalecap.engines.connection import Connection, Refused
from scalecap.engines.encoded_images import Pictures
from scalecap.engines.identity import identity
from scalecap.engines.loop import LoopThread
from scalecap.engines.served_models import AwayError, Card, agreed, card_of, cards, found, key_refused
from scalecap.engines.servers import LATER_LIMIT, Server, Servers
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError

log = logging.getLogger(__name__)

T = TypeVar("T")
_TOP = 20
"""Most alternatives that OpenAI's protocol tells of a token."""
_FEWEST = 3
"""Alternatives that a server is to tell at least for choices to be read from them."""
_WORDS = 8
"""Tokens within which a reply's first word ends, where text must do."""
_CONCURRENCY = 32
"""Requests in flight that keep a server busy."""
_PREFLIGHT_TIMEOUT = 5.0
"""Seconds that a server has to list its models when a config is checked."""


async def open_openai(model: ModelSettings, engine: EngineSettings) -> "OpenAIEngine":
    """Connect to the servers, see that they have the model and whether they tell log-probabilities.

    Of several servers some may be away; they are asked when they are there and found to be as the others.

    Raises:
        ModelError: no server there, one refuses the key, has not that model, is not as the others or does not
            answer; the message names it.
    """
    if not engine.addresses:
        raise ModelError("engine=openai needs the server's address: engine.base_url=http://localhost:8000/v1")
    connections = [Connection(each) for each in engine.addresses]
    servers = Servers(
        [Server(each, engine.concurrency or _CONCURRENCY) for each in connections],
        engine.timeout,
        engine.retries,
    )
    try:
        listed = await cards(connections, model, engine.timeout)
        there = {at: card for at, card in listed.items() if not isinstance(card, AwayError)}
        card = agreed(there, engine)
        opened = OpenAIEngine(servers, model, engine, card, _TOP if engine.logprobs is not False else 0)
        if engine.logprobs is None and (top := await opened.most_told(there)) != _TOP:
            who = "the server tells" if len(there) == 1 else "the servers tell"
            if top:
                log.warning("%s %d likely tokens and not %d: some checks may be unanswered", who, top, _TOP)
            else:
                log.warning("%s no log-probabilities: yes or no is read from the reply's first word", who)
            opened = OpenAIEngine(servers, model, engine, card, top)
    except BaseException:
        await servers.close()
        raise

    async def accept(server: Server) -> None:
        """A server that is back, or there for the first time, may be another."""
        agreed(
            {**there, server.connection: await card_of(server.connection, model, _PREFLIGHT_TIMEOUT)}, engine
        )
        await opened.probe(server)

    if len(connections) > 1:
        servers.accept = accept
    servers.notes()  # the probes are no requests of a run
    for server in servers.servers:
        if isinstance(away := listed[server.connection], AwayError):
            servers.leave(server, away.__cause__ or away)
    return opened


def preflight(model: ModelSettings, engine: EngineSettings) -> str:
    """Sees within seconds that the servers have the model: what could not be seen.

    Raises:
        ModelError: no server there, one refuses the key, has other models, or is not as the others.
    """

    async def listed() -> dict[Connection, Card | AwayError]:
        connections = [Connection(each) for each in engine.addresses]
        try:
            return await cards(connections, model, _PREFLIGHT_TIMEOUT)
        finally:
            for each in connections:
                await each.close()

    loop = LoopThread()
    try:
        found = loop.run(listed())
    finally:
        loop.close()
    agreed({at: card for at, card in found.items() if not isinstance(card, AwayError)}, engine)
    unseen = []
    for at, card in found.items():
        which = "the server" if len(found) == 1 else at.shown
        why = "it is away" if isinstance(card, AwayError) else "" if card else "it lists none"
        unseen += [f"whether {which} has a model {model.name}, since {why}"] if why else []
    return "; ".join(unseen)


class OpenAIEngine:
    """Engine over servers that run one model.

    Args:
        card: what they list about the model.
        top: first tokens whose log-probabilities choices are read from; 0 reads them from text.
    """

    def __init__(
        self, servers: Servers, model: ModelSettings, engine: EngineSettings, card: Card, top: int
    ) -> None:
        told = {_TOP: "", 0: "choices=text"}.get(top, f"top_logprobs={top}")
        self.identity = identity("openai", found(model, engine, card, told), model, engine)
        self.context_length: int | None = card.get("max_model_len") or model.max_context
        self.concurrency = (engine.concurrency or _CONCURRENCY) * len(servers.servers)
        self.kv_tokens: int | None = None
        self._servers = servers
        self._model = model
        self._pictures = Pictures(model.max_pixels, engine.jpeg_quality)
        self._top = top
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
        if self._top:
            told, usage = await self._first_token(request.prompt, self._top)
        else:
            (reply, usage), _ = await self._ask(request.prompt, _WORDS, _reply, {"temperature": 0})
            word = re.search(r"[\w/]+", text_and_reasoning(reply["message"])[0])
            told = [(word.group(), 0.0)] if word else []
        return choice(told, request.options, usage, cut=0 < self._top < _TOP)

    async def most_told(self, connections: Collection[Connection]) -> int:
        """How many likely first tokens each of the servers tells, up to 20; 0 where they tell none.

        Raises ModelError when one answers no question at all, or some tell them and others do not.
        """
        told: dict[int, list[str]] = {}
        for server in self._servers.servers:
            if server.connection in connections:
                told.setdefault(await self._told_by(server), []).append(server.connection.shown)
        if 0 in told and len(told) > 1:
            tell = [at for top, each in told.items() if top for at in each]
            raise ModelError(
                f"{', '.join(tell)} tell log-probabilities and {', '.join(told[0])} do not:"
                " engine.logprobs=false reads yes and no from the text of all"
            )
        return min(told)

    async def _told_by(self, server: Server) -> int:
        top = _TOP
        while True:
            try:
                await self._first_token(PROBE, top, [server])
                return top
            except EngineError as error:
                if "logprobs" not in str(error):
                    raise ModelError(
                        f"{server.connection.shown} does not answer a yes/no question to {self._model.name}"
                        f" ({error}); engine.logprobs=true or false opens it without one"
                    ) from error
                most = most_alternatives(str(error)) or 0
                if not _FEWEST <= most < top:
                    return 0
                top = most

    async def probe(self, server: Server) -> None:
        """Raises ModelError when a server that was away does not answer as the others do."""
        if self._top:
            sent = {"model": self._model.name, server.limit: 1, **_first_token(self._top), **self._body}
            try:
                async with asyncio.timeout(self._patience):
                    first_tokens(await server.connection.post("/chat/completions", body(sent, PROBE, None)))
            except (Refused, ValueError) as error:
                raise ModelError(
                    f"{server.connection.shown} does not tell {self._top} log-probabilities ({error})"
                ) from error

    async def _first_token(
        self, prompt: Prompt, top: int, among: Sequence[Server] | None = None
    ) -> tuple[list[tuple[str, float]], Usage]:
        """The likeliest first tokens of a reply with their log-probabilities."""
        read, _ = await self._ask(
            prompt,
            1,
            lambda answer: (first_tokens(answer), token_usage(answer)),
            _first_token(top),
            among=among,
        )
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

    def notes(self) -> list[str]:
        """What a run is to tell of the servers, where there are several."""
        return self._servers.notes()

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
        among: Sequence[Server] | None = None,
    ) -> tuple[T, int]:
        """What `read` makes of a chat completion of at most `room` tokens, fewer where the context is almost
        full, and how many it might have."""
        order = among or self._servers.order(prompt.image.hash if prompt.image else prompt.text)
        room = min(room, self.context_length or room)
        picture = await self._pictures.encoded(prompt.image) if prompt.image else None
        server, sent = order[0], settings

        def made(asked: Server) -> list[bytes]:
            nonlocal server, sent
            server, sent = asked, {"model": self._model.name, asked.limit: room, **settings, **self._body}
            if not asked.penalises:
                sent.pop("repetition_penalty", None)
            return body(sent, prompt, picture, after)

        try:
            return await self._servers.complete(order, made, read), room
        except Refused as refused:
            left = self._adapted(server, sent, refused, room)
        except TimeoutError as error:
            raise EngineError(f"no answer within engine.timeout={self._patience:g} seconds") from error
        except (ConnectionError, ValueError) as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        return await self._ask(prompt, left, read, settings, after, among)

    def _adapted(self, server: Server, sent: Mapping[str, Any], refused: Refused, room: int) -> int:
        """Tokens to ask the server for after it has refused, once what it does not know is left out.

        Raises EngineError where that can't help.
        """
        at, said = server.connection.shown, refused.words
        if refused.status in (401, 403):
            if "logprobs" in said:  # some hosts tell them of some models alone
                raise EngineError(f"the server refuses the request: {said}") from refused
            raise EngineDead(key_refused(server.connection)) from refused
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


def _first_token(top: int) -> dict[str, Any]:
    return {"temperature": 0, "logprobs": True, "top_logprobs": top}


def _reply(answer: Any) -> tuple[Mapping[str, Any], Usage]:
    return first_choice(answer), token_usage(answer)
