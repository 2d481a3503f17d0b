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
* A picture is sent as PNG, scaled down to `model.vlm.max_pixels` here; `min_pixels` has no effect.

A server that goes away, to be restarted or for good, costs no row: requests wait for it up to
`engine.timeout`, and then the run stops.

The key is taken from the environment variable OPENAI_API_KEY, and from nowhere else.
"""

import asyncio
import base64
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineDead,
    EngineError,
    Generate,
    Generated,
    Image,
    Prompt,
    PromptTooLong,
    Score,
    Scored,
    Token,
    Usage,
    finish,
)
from scalecap.engines.identity import identity
from scalecap.engines.reasoning import split_reasoning
from scalecap.engines.weights import ModelError
from scalecap.settings import EngineSettings, ModelSettings

log = logging.getLogger(__name__)

Read = Callable[[Any], Any]

_TOP = 20
"""Most alternatives that OpenAI's protocol tells of a token."""
_WORDS = 8
"""Tokens within which a reply's first word ends, where text must do."""
_PICTURES = 64
"""Encoded pictures kept."""
_TRIES = 2
"""Times that a request may get garbage, or lose its connection though the server is there."""
_LOOK = 2.0
"""Seconds before each look whether a server is back."""
_LOOK_TIMEOUT = 5.0
"""Seconds that a server has to list its models when a config is checked."""
PROBE = Prompt("Is a cat an animal? Answer yes or no.")
"""Asked when an engine is opened, to see whether the server tells log-probabilities."""


async def open_openai(model: ModelSettings, engine: EngineSettings) -> "OpenAIEngine":
    """Connect to a server, see that it has the model and whether it tells log-probabilities.

    Raises:
        ModelError: no server there, it refuses the key, it has not that model, or does not answer.
    """
    import openai

    if not engine.base_url:
        raise ModelError("engine=openai needs the server's address: engine.base_url=http://localhost:8000/v1")
    card = await asyncio.to_thread(_listed, model, engine, timeout=engine.timeout, retries=engine.retries)
    client = openai.AsyncOpenAI(**_connection(engine), timeout=engine.timeout, max_retries=engine.retries)
    if engine.logprobs is not None:
        return OpenAIEngine(client, model, engine, card, engine.logprobs)
    opened = OpenAIEngine(client, model, engine, card, logprobs=True)
    try:
        if await opened.tells_logprobs():
            return opened
    except EngineError as error:
        await client.close()
        raise ModelError(f"{engine.base_url} lists {model.name} and answers no question: {error}") from error
    log.warning("the server tells no log-probabilities: yes or no is read from the reply's first word")
    return OpenAIEngine(client, model, engine, card, logprobs=False)


def look(model: ModelSettings, engine: EngineSettings) -> str:
    """Sees within seconds that a server has the model: what could not be seen; ModelError as `_listed`."""
    card = _listed(model, engine, timeout=_LOOK_TIMEOUT, retries=0)
    return "" if card else f"whether the server has a model {model.name}, since it lists none"


def _connection(engine: EngineSettings) -> dict[str, Any]:
    return {"base_url": engine.base_url, "api_key": os.environ.get("OPENAI_API_KEY") or "none"}


def _listed(model: ModelSettings, engine: EngineSettings, *, timeout: float, retries: int) -> Any:
    """What the server lists about the model; None when it lists nothing, as some do that answer requests.

    Raises:
        ModelError: no server there, it refuses the key, or it has other models.
    """
    import openai

    try:
        with openai.OpenAI(**_connection(engine), timeout=timeout, max_retries=retries) as client:
            served = list(client.models.list())
    except openai.APIConnectionError as error:
        raise ModelError(
            f"no server answers at engine.base_url={engine.base_url} ({error.__cause__ or error})"
        ) from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ModelError(_refused(engine.base_url or "")) from error
    except (openai.OpenAIError, ValueError, TypeError) as error:
        log.debug("the server does not list its models: %s", error)
        return None
    card = next((card for card in served if card.id == model.name), None)
    if served and card is None:
        names = ", ".join(card.id for card in served[:10])
        raise ModelError(f"{engine.base_url} has no model {model.name}: set model.vlm.name to one of {names}")
    return card


def _found(model: ModelSettings, engine: EngineSettings, card: Any, logprobs: bool) -> str:
    """What answers, as far as it can be known from here: the name served, and by whom."""
    parts = [model.name]
    if engine.identity:
        parts.append(f"is={engine.identity}")
    else:
        parts += [f"root={root}"] if (root := getattr(card, "root", None)) else []
        parts.append(f"at={_address(engine.base_url or '')}")
    return " ".join(parts if logprobs else [*parts, "choices=text"])


def _address(url: str) -> str:
    """The URL without what lets its reader in: a user's name and password, and a digest of its query."""
    parts = urlsplit(url)
    query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{query}"


def _refused(url: str) -> str:
    return f"{url} refuses the key: set the environment variable OPENAI_API_KEY to the server's key"


class OpenAIEngine:
    """Engine over an `AsyncOpenAI` client, which itself retries 429 (as Retry-After asks), 5xx,
    timeouts and lost connections with growing, jittered pauses.

    Args:
        card: what the server lists about the model, if it does; vLLM's tells path and context.
        logprobs: whether choices are read from log-probabilities, or from text.
    """

    def __init__(
        self, client: Any, model: ModelSettings, engine: EngineSettings, card: Any, logprobs: bool
    ) -> None:
        self.identity = identity("openai", _found(model, engine, card, logprobs), model, engine)
        self.context_length: int | None = getattr(card, "max_model_len", None) or model.max_context
        self.concurrency = engine.concurrency or 32
        self.kv_tokens: int | None = None
        self._client = client
        self._model = model
        self._free = asyncio.Semaphore(self.concurrency)
        self._pictures: OrderedDict[str, asyncio.Task[str]] = OrderedDict()
        self._logprobs = logprobs
        self._reasons = False
        """Whether a reply had reasoning, which is logged once."""
        self._body = dict(engine.extra_body)
        if model.chat_template_kwargs:
            self._body["chat_template_kwargs"] = dict(model.chat_template_kwargs)
        self._patience = engine.timeout
        self._back: asyncio.Task[bool] | None = None

    async def generate(self, request: Generate) -> Generated:
        """Write a reply; whether the seed is honoured is the server's affair."""
        sampling = request.sampling
        extra = (
            {"repetition_penalty": sampling.repetition_penalty} if sampling.repetition_penalty != 1 else {}
        )
        answer = await self._ask(
            await self._messages(request.prompt),
            sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed % 2**63,
            extra_body=extra,
            **_constraint(request.schema),
        )
        choice = answer.choices[0]
        if choice.finish_reason == "content_filter":
            raise EngineError("the server's filter withheld the reply")
        text, reasoning = _said(choice.message)
        if reasoning and not self._reasons:
            self._reasons = True
            log.warning(
                "%s reasons before it answers, which costs tokens and spoils checks that read the first"
                " token; most servers turn it off with"
                " model.<role>.chat_template_kwargs.enable_thinking=false",
                self._model.name,
            )
        usage = _usage(answer)
        wanted = sampling.max_tokens
        ended = finish(choice.finish_reason, usage.generated_tokens or wanted, wanted)
        return Generated(text, ended, usage, reasoning)

    async def choose(self, request: Choose) -> Chosen:
        """Compare the options as the reply's first token, or by its first word."""
        if self._logprobs:
            answer = await self._first_token(request.prompt)
            told = _top(answer)
        else:
            answer = await self._ask(await self._messages(request.prompt), _WORDS, temperature=0)
            word = re.search(r"[\w/]+", _said(answer.choices[0].message)[0])
            told = [(word.group(), 0.0)] if word else []
        return _weigh(told, request.options, _usage(answer))

    async def tells_logprobs(self) -> bool:
        """Whether the server tells log-probabilities. EngineError when it answers no question at all."""
        try:
            await self._first_token(PROBE)
        except EngineError as error:
            if "logprobs" in str(error):
                return False
            raise
        return True

    async def _first_token(self, prompt: Prompt) -> Any:
        """A reply of one token, with the likeliest that it could have been (see `_top`)."""
        messages = await self._messages(prompt)
        return await self._ask(messages, 1, _top, temperature=0, logprobs=True, top_logprobs=_TOP)

    async def score(self, request: Score) -> Scored:
        """Rate a text as the reply, by vLLM's extension of the protocol."""
        if not request.text:
            return Scored(())
        messages = [*await self._messages(request.prompt), {"role": "assistant", "content": request.text}]
        extra = {"continue_final_message": True, "add_generation_prompt": False, "prompt_logprobs": 0}
        answer = await self._ask(messages, 1, temperature=0, extra_body=extra)
        entries = getattr(answer, "prompt_logprobs", None)
        if not entries:
            raise EngineError("the server can't rate a given text: take engine=vllm, or serve with vLLM")
        pieces = [next(iter(entry.values())) for entry in entries if entry]
        tokens = _tail([(piece["decoded_token"] or "", piece["logprob"]) for piece in pieces], request.text)
        return Scored(tokens, _usage(answer)._replace(generated_tokens=0))

    async def close(self) -> None:
        """End the connections."""
        if self._back:
            self._back.cancel()
        await self._client.close()

    async def _ask(
        self,
        messages: list[dict[str, Any]],
        room: int,
        read: Read | None = None,
        extra_body: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        """One chat completion of at most `room` tokens, fewer where the context is almost full.

        An answer that `read` raises ValueError for counts as garbage: it is asked for once more.
        """
        import openai

        room = min(room, self.context_length or room)
        asked = {"model": self._model.name, "messages": messages, "max_tokens": room, **settings}
        asked["extra_body"] = {**self._body, **(extra_body or {})}
        try:
            return await self._answered(asked, read)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            if "logprobs" in error.message:  # some hosts tell them of some models alone
                raise EngineError(f"the server refuses the request: {error.message}") from error
            raise EngineDead(_refused(str(self._client.base_url))) from error
        except openai.NotFoundError as error:
            raise EngineDead(
                f"{self._client.base_url} has no chat completions of {self._model.name}: "
                f"check engine.base_url and model.vlm.name ({error.message})"
            ) from error
        except openai.BadRequestError as error:
            long = _too_long(error.message, self.context_length)
            if long is None:
                raise EngineError(f"the server refuses the request: {error.message}") from error
            if 0 < (left := long.limit - long.tokens) < room:
                return await self._ask(messages, left, read, extra_body, **settings)
            raise long from error
        except openai.APITimeoutError as error:
            raise EngineError(f"no answer within engine.timeout={self._patience:g} seconds") from error
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise EngineError(f"{type(error).__name__}: {error.__cause__ or error}") from error

    async def _answered(self, asked: dict[str, Any], read: Read | None) -> Any:
        """What the server answers, at last; raises what `openai` raises."""
        import openai

        tries = 0
        while True:
            try:
                async with self._free:
                    answer = await self._client.chat.completions.create(**asked)
                if not getattr(answer, "choices", None):
                    raise ValueError("the server's answer is not a chat completion")
                if read:
                    read(answer)
                return answer
            except openai.APITimeoutError:
                raise
            except openai.APIConnectionError:
                tries += not await self._was_away()
                if tries == _TRIES:
                    raise
            except (ValueError, TypeError, openai.APIResponseValidationError):
                tries += 1
                if tries == _TRIES:
                    raise

    async def _was_away(self) -> bool:
        """Waits until the server answers, with all who lost their connection; whether it was away."""
        if self._back is None or self._back.done():
            self._back = asyncio.create_task(self._look())
        return await asyncio.shield(self._back)

    async def _look(self) -> bool:
        import openai

        client = self._client.with_options(max_retries=0, timeout=10)
        url, begun, away = self._client.base_url, time.monotonic(), False
        while True:
            # Also before the first look: one that shuts down drops connections while it still answers.
            await asyncio.sleep(_LOOK)
            try:
                await client.models.list()
            except openai.APIConnectionError as error:
                if time.monotonic() - begun > self._patience:
                    raise EngineDead(
                        f"the server at {url} is gone: no answer for {self._patience:.0f} s"
                        f" ({error.__cause__ or error})"
                    ) from error
            except (openai.OpenAIError, ValueError, TypeError):
                return away  # whatever it says, it is there
            else:
                return away
            if not away:
                log.warning("no answer from %s: waiting up to %.0f s for it", url, self._patience)
                away = True

    async def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        content: Any = prompt.text
        if prompt.image:
            url = {"url": await self._encoded(prompt.image)}
            content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": prompt.text}]
        system = [{"role": "system", "content": prompt.system}] if prompt.system else []
        return [*system, {"role": "user", "content": content}]

    async def _encoded(self, image: Image) -> str:
        """A picture's data URL, made once while it is in use."""
        if image.hash not in self._pictures:
            work = asyncio.to_thread(_data_url, image, self._model.max_pixels)
            self._pictures[image.hash] = asyncio.create_task(work)
        self._pictures.move_to_end(image.hash)
        task = self._pictures[image.hash]
        if len(self._pictures) > _PICTURES:
            self._pictures.popitem(last=False)
        # One that gives up must not take the picture from the others who wait for it.
        return await asyncio.shield(task)


def _said(message: Any) -> tuple[str, str]:
    """Answer and reasoning, which servers tell apart or leave in one text."""
    # JSON can hold half a character, which nothing else can.
    content, *apart = (
        told.encode("utf-8", "replace").decode() if isinstance(told, str) else ""
        for told in (getattr(message, name, None) for name in ("content", "reasoning_content", "reasoning"))
    )
    text, before = split_reasoning(content)
    # Some servers send the same reasoning under both names.
    return text, "\n\n".join(dict.fromkeys(filter(None, [*apart, before])))


def _constraint(schema: str | None) -> dict[str, Any]:
    """What asks a server for replies that follow a schema."""
    if schema is None:
        return {}
    wanted = {"name": "reply", "schema": json.loads(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def _data_url(image: Image, max_pixels: int | None) -> str:
    pixels = image.pixels
    if max_pixels and pixels.width * pixels.height > max_pixels:
        scale = math.sqrt(max_pixels / (pixels.width * pixels.height))
        pixels = pixels.resize((max(1, int(pixels.width * scale)), max(1, int(pixels.height * scale))))
    file = io.BytesIO()
    pixels.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _top(answer: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities. ValueError when the answer has none."""
    try:
        top = [
            (str(each.token), float(each.logprob))
            for each in answer.choices[0].logprobs.content[0].top_logprobs
        ]
    except (AttributeError, IndexError, TypeError):
        top = []
    if not top:
        raise ValueError("the server's answer has no logprobs")
    return top


def _weigh(top: list[tuple[str, float]], options: tuple[str, ...], usage: Usage) -> Chosen:
    """The choice that first tokens and their log-probabilities tell; 0 each where no option is among them."""
    spelt = [option.casefold() for option in options]
    each = [0.0] * len(options)
    for token, logprob in top:
        if (word := token.strip().casefold()) in spelt:
            each[spelt.index(word)] += math.exp(logprob)
    return Chosen.among(each, usage)


def _tail(pieces: list[tuple[str, float]], text: str) -> tuple[Token, ...]:
    """The last pieces that spell the text, as tokens; first bytes of a character, which have no text, join
    the piece that ends it."""
    ends = itertools.accumulate((len(piece) for piece, _ in reversed(pieces)), initial=0)
    first = len(pieces) - next((count for count, length in enumerate(ends) if length >= len(text)), 0)
    if "".join(piece for piece, _ in pieces[first:]) != text:
        raise EngineError("the server's tokens don't spell the text that was to be rated")
    while first > 0 and not pieces[first - 1][0]:
        first -= 1
    tokens: list[Token] = []
    start, begun = 0, 0.0
    for piece, logprob in pieces[first:]:
        begun += logprob
        if piece:
            tokens.append(Token(start, start + len(piece), begun))
            start, begun = start + len(piece), 0.0
    return tuple(tokens)


def _too_long(message: str, context: int | None) -> PromptTooLong | None:
    """What a server's refusal says about the prompt's length; None when it is about something else."""
    if not re.search(
        r"context (length|window|size)|maximum model length|max_model_len", message, re.IGNORECASE
    ):
        return None
    numbers = [int(number) for number in re.findall(r"\d+", message)]
    limit = re.search(r"(?:context length|model length|context size|max_model_len)\D{0,20}(\d+)", message)
    tokens = re.search(r"(\d+) (?:input tokens|tokens from the input|in the messages)", message)
    most = int(limit.group(1)) if limit else context or 0
    return PromptTooLong(int(tokens.group(1)) if tokens else max(numbers, default=most + 1), most)


def _usage(answer: Any) -> Usage:
    if (usage := answer.usage) is None:
        return Usage()
    cached = getattr(usage.prompt_tokens_details, "cached_tokens", None)
    reasoning = getattr(usage.completion_tokens_details, "reasoning_tokens", None)
    return Usage(usage.prompt_tokens, cached or 0, usage.completion_tokens, reasoning or 0)
