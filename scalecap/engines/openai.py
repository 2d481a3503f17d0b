"""Engine for servers with OpenAI's API: vLLM, SGLang, llama.cpp, or a hosted one.

Nothing of the model is on this machine, so some things depend on the server:

* `choose` sees only the 20 likeliest first tokens; an option that is not among them has probability 0. If the
  server returns fewer, but at least three, those are used, and no option counts as chosen where a missing one
  might be likely. Whether the server returns log-probabilities, and how many, is found out when the engine is
  opened (or set by `engine.logprobs`). Without them the server is asked for text, and the reply's first word
  is the choice. This is logged, and such replies are cached separately.
* The server decides which weights answer, so replies are cached by its address (by all addresses of several
  servers), or by `engine.identity`.
* `score` needs a server that returns `prompt_logprobs`, as vLLM does.
* Control tokens in a text are handled by the server.
* If the server's chat template opens `<think>` and the reply ends before `</think>` because of `max_tokens`,
  the reasoning can't be told from an answer unless the server parses it; the reply is flagged "truncated".
* Images are sent as PNG, or as JPEG with `engine.jpeg_quality`, scaled down to `model.vlm.max_pixels` here;
  `min_pixels` has no effect.

`servers.py` describes routing, retries and failover, `connection.py` where the API key comes from.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
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
    Unsupported,
    Usage,
    finish_reason,
)
from scalecap.engines.completions import (
    PROBE,
    align_tokens,
    choose_option,
    first_choice,
    max_top_logprobs,
    prompt_too_long,
    request_body,
    response_format,
    text_and_reasoning,
    token_usage,
    top_logprobs,
)
from scalecap.engines.connection import Connection, StatusError
from scalecap.engines.encoded_images import ImageEncoder
from scalecap.engines.identity import identity
from scalecap.engines.loop import LoopThread
from scalecap.engines.served_models import (
    Card,
    fetch_card,
    fetch_cards,
    merge_cards,
    rejected_key,
    served_model,
)
from scalecap.engines.servers import MAX_COMPLETION_TOKENS, Server, ServerPool
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError

log = logging.getLogger(__name__)

T = TypeVar("T")
_TOP_LOGPROBS = 20
"""The largest `top_logprobs` in OpenAI's protocol."""
_MIN_TOP_LOGPROBS = 3
"""With fewer alternatives than this, choices are read from text."""
_FIRST_WORD_TOKENS = 8
"""Tokens generated to read a choice from the reply's first word."""
_CONCURRENCY = 32
"""Default number of requests in flight at each server."""
_OPTIONAL_ARGUMENTS = {
    "repetition_penalty": "repetition_penalty: replies are sampled without it",
    "response_format": "JSON schemas: replies are only checked",
}
"""Arguments that servers may reject, and what a request without them means."""
_PREFLIGHT_TIMEOUT = 5.0
"""Seconds that a server has to list its models when a config is checked."""


async def open_openai(model: ModelSettings, engine: EngineSettings) -> "OpenAIEngine":
    """Connects to the servers and checks that they have the model and whether they return log-probabilities.

    Some of several servers may be down; they are checked when they come up.

    Raises:
        ModelError: no server answers, or one rejects the API key, does not have the model or differs from the
            others; the message names it.
    """
    if not engine.addresses:
        raise ModelError("engine=openai needs the server's address: engine.base_url=http://localhost:8000/v1")
    connections = [Connection(url) for url in engine.addresses]
    pool = ServerPool(
        [Server(each, engine.concurrency or _CONCURRENCY) for each in connections],
        engine.timeout,
        engine.retries,
    )
    try:
        available, down = await fetch_cards(connections, model, engine.timeout)
        card = merge_cards(available, engine)
        top = _TOP_LOGPROBS if engine.logprobs is not False else 0
        opened = OpenAIEngine(pool, model, engine, card, top)
        if engine.logprobs is None and (top := await opened.probe_logprobs(available)) != _TOP_LOGPROBS:
            _warn_of_few_logprobs(top, len(available))
            opened = OpenAIEngine(pool, model, engine, card, top)
    except BaseException:
        await pool.close()
        raise

    async def readmit(server: Server) -> None:
        """A server that comes up may serve another model than before, or than the others."""
        card = await fetch_card(server.connection, model, _PREFLIGHT_TIMEOUT)
        merge_cards({**available, server.connection: card}, engine)
        await opened.verify(server)

    if len(connections) > 1:
        pool.readmit = readmit
    pool.notes()  # the probes don't count as requests of a run
    for server in pool.servers:
        if error := down.get(server.connection):
            pool.mark_down(server, error.__cause__ or error)
    return opened


def _warn_of_few_logprobs(top: int, servers: int) -> None:
    who = "the server returns" if servers == 1 else "the servers return"
    if top:
        log.warning(
            "%s %d log-probabilities a token instead of %d: some checks may be unanswered",
            who,
            top,
            _TOP_LOGPROBS,
        )
    else:
        log.warning("%s no log-probabilities: yes or no is read from the reply's first word", who)


def preflight(model: ModelSettings, engine: EngineSettings) -> str:
    """Checks within seconds that the servers have the model; returns what could not be checked.

    Raises:
        ModelError: no server answers, or one rejects the API key, has other models or differs from the
            others.
    """

    async def fetch() -> dict[Connection, str]:
        """Why it could not be checked, by server."""
        connections = [Connection(url) for url in engine.addresses]
        try:
            cards, down = await fetch_cards(connections, model, _PREFLIGHT_TIMEOUT)
        finally:
            for connection in connections:
                await connection.close()
        merge_cards(cards, engine)
        reasons = {at: "it is down" if at in down else "it lists none" for at in connections}
        return {at: reason for at, reason in reasons.items() if not cards.get(at)}

    with closing(LoopThread()) as loop:
        unchecked = loop.run(fetch())
    several = len(engine.addresses) > 1
    return "; ".join(
        f"whether {at.display_url if several else 'the server'} has a model {model.name}, since {reason}"
        for at, reason in unchecked.items()
    )


class OpenAIEngine:
    """Engine over servers that run one model.

    Args:
        card: what they list about the model.
        top: number of alternatives to the first token that choices are read from; 0 reads them from text.
    """

    def __init__(
        self, pool: ServerPool, model: ModelSettings, engine: EngineSettings, card: Card, top: int
    ) -> None:
        logprobs = {_TOP_LOGPROBS: "", 0: "choices=text"}.get(top, f"top_logprobs={top}")
        self.identity = identity("openai", served_model(model, engine, card, logprobs), model, engine)
        self.context_length: int | None = card.get("max_model_len") or model.max_context
        self.concurrency = (engine.concurrency or _CONCURRENCY) * len(pool.servers)
        self.kv_tokens: int | None = None
        self._pool = pool
        self._model = model
        self._images = ImageEncoder(model.max_pixels, engine.jpeg_quality)
        self._top = top
        self._warned_of_reasoning = False
        self._extra_body = dict(engine.extra_body)
        if model.chat_template_kwargs:
            self._extra_body["chat_template_kwargs"] = dict(model.chat_template_kwargs)
        self._timeout = engine.timeout

    async def generate(self, request: Generate) -> Generated:
        """Generates a reply; whether the seed is honoured depends on the server."""
        sampling = request.sampling
        penalty = sampling.repetition_penalty
        choice, usage, max_tokens = await self._complete(
            request.prompt,
            sampling.max_tokens,
            first_choice,
            {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": request.seed % 2**63,
                **({"repetition_penalty": penalty} if penalty != 1 else {}),
                **response_format(request.schema),
            },
        )
        if (reason := choice.get("finish_reason")) == "content_filter":
            raise EngineError("the server's content filter withheld the reply")
        text, reasoning = text_and_reasoning(choice["message"])
        if reasoning and not self._warned_of_reasoning:
            self._warned_of_reasoning = True
            log.warning(
                "%s reasons before it answers, which costs tokens and spoils checks that read the first"
                " token; most servers turn it off with"
                " model.<role>.chat_template_kwargs.enable_thinking=false",
                self._model.name,
            )
        finish = finish_reason(reason, usage.generated_tokens or max_tokens, sampling.max_tokens)
        return Generated(text, finish, usage, reasoning)

    async def choose(self, request: Choose) -> Chosen:
        """Compares the options as the reply's first token, or by its first word."""
        if self._top:
            arguments = _logprobs_arguments(self._top)
            top, usage, _ = await self._complete(request.prompt, 1, top_logprobs, arguments)
        else:
            choice, usage, _ = await self._complete(
                request.prompt, _FIRST_WORD_TOKENS, first_choice, {"temperature": 0}
            )
            word = re.search(r"[\w/]+", text_and_reasoning(choice["message"])[0])
            top = [(word.group(), 0.0)] if word else []
        truncated = self._top > 0 and len(top) < _TOP_LOGPROBS
        return choose_option(top, request.options, usage, truncated=truncated)

    async def probe_logprobs(self, connections: Collection[Connection]) -> int:
        """The number of log-probabilities a token that all of the servers return, up to 20; 0 for none.

        Raises:
            ModelError: a server does not answer a yes/no question, or only some return log-probabilities.
        """
        found: dict[int, list[str]] = {}
        for server in self._pool.servers:
            if server.connection in connections:
                top = await self._probe_server(server)
                found.setdefault(top, []).append(server.connection.display_url)
        if 0 in found and len(found) > 1:
            others = [url for top, urls in found.items() if top for url in urls]
            raise ModelError(
                f"{', '.join(others)} return log-probabilities and {', '.join(found[0])} do not:"
                " engine.logprobs=false reads yes and no from the text of all"
            )
        return min(found)

    async def _probe_server(self, server: Server) -> int:
        top = _TOP_LOGPROBS
        while True:
            try:
                arguments = _logprobs_arguments(top)
                found, *_ = await self._complete(PROBE, 1, top_logprobs, arguments, servers=[server])
                return top if len(found) > 1 else 0  # some return that of the reply's own token only
            except EngineError as error:
                if "logprobs" not in str(error):
                    raise ModelError(
                        f"{server.connection.display_url} does not answer a yes/no question to"
                        f" {self._model.name} ({error}); engine.logprobs=true or false opens it without one"
                    ) from error
                most = max_top_logprobs(str(error)) or 0
                if not _MIN_TOP_LOGPROBS <= most < top:
                    return 0
                top = most

    async def verify(self, server: Server) -> None:
        """Raises ModelError if a server that was down returns fewer log-probabilities than the others."""
        if self._top:
            settings = {
                "model": self._model.name,
                server.max_tokens_key: 1,
                **_logprobs_arguments(self._top),
                **self._extra_body,
            }
            try:
                async with asyncio.timeout(self._timeout):
                    body = request_body(settings, PROBE, None)
                    top_logprobs(await server.connection.post("/chat/completions", body))
            except (StatusError, ValueError) as error:
                raise ModelError(
                    f"{server.connection.display_url} does not return {self._top} log-probabilities ({error})"
                ) from error

    async def score(self, request: Score) -> Scored:
        """Scores a text as the reply, by vLLM's extension of the protocol."""
        if not request.text:
            return Scored(())
        response, usage, _ = await self._complete(
            request.prompt,
            1,
            lambda response: first_choice(response) and response,
            {
                "temperature": 0,
                "continue_final_message": True,
                "add_generation_prompt": False,
                "prompt_logprobs": 0,
            },
            [{"role": "assistant", "content": request.text}],
        )
        entries = response.get("prompt_logprobs")
        if not entries:
            raise Unsupported("the server can't score a given text: use engine=vllm, or serve with vLLM")
        pieces = [next(iter(entry.values())) for entry in entries if entry]
        tokens = align_tokens(
            [(piece["decoded_token"] or "", piece["logprob"]) for piece in pieces], request.text
        )
        return Scored(tokens, usage._replace(generated_tokens=0))

    def notes(self) -> list[str]:
        """Lines for the run's summary about the servers, if there are several."""
        return self._pool.notes()

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.close()

    async def _complete(
        self,
        prompt: Prompt,
        max_tokens: int,
        read: Callable[[Any], T],
        settings: Mapping[str, Any],
        extra_turns: Sequence[dict[str, str]] = (),
        servers: Sequence[Server] | None = None,
    ) -> tuple[T, Usage, int]:
        """A chat completion as parsed by `read`, its usage, and the `max_tokens` that it was given.

        These are fewer than asked for if the context has no room for more.

        Args:
            settings: keys of the body besides those that all requests have.
            servers: those to use; None is all.
        """
        order = servers or self._pool.order(prompt.image.hash if prompt.image else prompt.text)
        max_tokens = min(max_tokens, self.context_length or max_tokens)
        image_url = await self._images.encode(prompt.image) if prompt.image else None
        used, sent, accepted = order[0], settings, prompt

        def make_body(server: Server) -> list[bytes]:
            nonlocal used, sent, accepted
            used = server
            common = {"model": self._model.name, server.max_tokens_key: max_tokens}
            wanted = {**common, **settings, **self._extra_body}
            sent = {name: value for name, value in wanted.items() if name not in server.unsupported}
            accepted = prompt if server.system_turn else replace(prompt, system="")
            return request_body(sent, accepted, image_url, extra_turns)

        def read_with_usage(response: Any) -> tuple[T, Usage]:
            return read(response), token_usage(response)

        try:
            return *await self._pool.complete(order, make_body, read_with_usage), max_tokens
        except StatusError as error:
            max_tokens = self._adapt(used, sent, accepted, error, max_tokens)
        except TimeoutError as error:
            raise EngineError(f"no answer within engine.timeout={self._timeout:g} seconds") from error
        except (ConnectionError, ValueError) as error:
            raise EngineError(f"{type(error).__name__}: {error}") from error
        return await self._complete(prompt, max_tokens, read, settings, extra_turns, servers)

    def _adapt(
        self, server: Server, sent: Mapping[str, Any], prompt: Prompt, error: StatusError, max_tokens: int
    ) -> int:
        """Notes what the server does not support, and returns the `max_tokens` to try next.

        Raises:
            EngineError: the request can't be changed so that the server accepts it.
        """
        url, message = server.connection.display_url, error.message
        # Of any status: a chat template that refuses a system turn makes some servers answer 500.
        if prompt.system and re.search(r"system (role|message|prompt|instruction)", message, re.I):
            server.system_turn = False
            return max_tokens
        if error.status in (401, 403):
            if "logprobs" in message:  # some hosts allow them for some models only
                raise Unsupported(f"the server refuses the request: {message}") from error
            raise EngineDead(rejected_key(server.connection)) from error
        if error.status == 404:
            raise EngineDead(
                f"{url} has no chat completions of {self._model.name}: "
                f"check engine.base_url and model.vlm.name ({message})"
            ) from error
        if error.status not in (400, 422):
            raise EngineError(f"the server can't answer: {error}") from error
        if MAX_COMPLETION_TOKENS in message and MAX_COMPLETION_TOKENS not in sent:
            server.max_tokens_key = MAX_COMPLETION_TOKENS
            return max_tokens
        for name, effect in _OPTIONAL_ARGUMENTS.items():
            if name in message and name in sent:
                if name not in server.unsupported:
                    log.warning("%s does not support %s (%s)", url, effect, message)
                server.unsupported.add(name)
                return max_tokens
        too_long = prompt_too_long(message, self.context_length)
        if too_long is None:
            raise Unsupported(f"the server refuses the request: {message}") from error
        if 0 < (left := too_long.limit - too_long.tokens) < max_tokens:
            return left
        raise too_long from error


def _logprobs_arguments(top: int) -> dict[str, Any]:
    return {"temperature": 0, "logprobs": True, "top_logprobs": top}
