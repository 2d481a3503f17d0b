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

A server that goes away, to be restarted or for good, costs no row: requests wait for it up to
`engine.timeout`, and then the run stops.

The key is taken from the environment variable OPENAI_API_KEY, and from nowhere else.
"""

import asyncio
import base64
import hashlib
import io
import logging
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    Score,
    Scored,
    finish,
)
from scalecap.engines.completions import (
    choice,
    first_tokens,
    schema_arguments,
    text_and_reasoning,
    token_usage,
    tokens_of,
    too_long,
)
from scalecap.engines.identity import identity
from scalecap.engines.weights import ModelError
from scalecap.settings import EngineSettings, ModelSettings

log = logging.getLogger(__name__)

Read = Callable[[Any], Any]

_TOP = 20
"""Most alternatives that OpenAI's protocol tells of a token."""
_WORDS = 8
"""Tokens within which a reply's first word ends, where text must do."""
_PICTURE_BYTES = 1 << 28
"""Characters of encoded pictures that are kept."""
_LATER_LIMIT = "max_completion_tokens"
"""What OpenAI calls max_tokens by now; its newer models refuse the older name, other servers the newer."""
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
    client = openai.AsyncOpenAI(**_connection(engine), timeout=engine.timeout, max_retries=engine.retries)
    try:
        served: list[Any] = []
        with _listing(engine, engine.timeout):
            async with asyncio.timeout(engine.timeout):
                served = [card async for card in client.models.list()]
        card = _card(served, model, engine)
        if engine.logprobs is not None:
            return OpenAIEngine(client, model, engine, card, engine.logprobs)
        opened = OpenAIEngine(client, model, engine, card, logprobs=True)
        if await opened.tells_logprobs():
            return opened
    except ModelError:
        await client.close()
        raise
    except EngineError as error:
        await client.close()
        raise ModelError(
            f"{engine.base_url} does not answer a yes/no question to {model.name} ({error});"
            " engine.logprobs=true or false opens it without one"
        ) from error
    log.warning("the server tells no log-probabilities: yes or no is read from the reply's first word")
    return OpenAIEngine(client, model, engine, card, logprobs=False)


def look(model: ModelSettings, engine: EngineSettings) -> str:
    """Sees within seconds that a server has the model: what could not be seen.

    Raises:
        ModelError: no server there, it refuses the key, or it has other models.
    """
    import openai

    served: list[Any] = []
    with (
        _listing(engine, _LOOK_TIMEOUT),
        openai.OpenAI(**_connection(engine), timeout=_LOOK_TIMEOUT, max_retries=0) as client,
    ):
        served = list(client.models.list())
    card = _card(served, model, engine)
    return "" if card else f"whether the server has a model {model.name}, since it lists none"


def _connection(engine: EngineSettings) -> dict[str, Any]:
    return {"base_url": engine.base_url, "api_key": os.environ.get("OPENAI_API_KEY") or "none"}


@contextmanager
def _listing(engine: EngineSettings, seconds: float) -> Iterator[None]:
    """Failures of listing a server's models as ModelError; some that answer requests list nothing."""
    import openai

    try:
        yield
    except (TimeoutError, openai.APIConnectionError) as error:
        why = f"({error.__cause__ or error})"
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            why = f"within {seconds:g} seconds"
        raise ModelError(f"no server answers at engine.base_url={engine.base_url} {why}") from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise ModelError(_refused(engine.base_url or "")) from error
    except (openai.OpenAIError, ValueError, TypeError) as error:
        log.debug("the server does not list its models: %s", error)


def _card(served: Sequence[Any], model: ModelSettings, engine: EngineSettings) -> Any:
    """What the server lists about the model; None when it lists nothing. ModelError: it has others."""
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


def _refusal(error: Any) -> str:
    """What the server says of a request that it refuses; FastAPI's servers do so in `detail`."""
    detail = error.body.get("detail") if isinstance(error.body, Mapping) else None
    return f"{error.message}: {detail}" if detail else str(error.message)


def _refused(url: str) -> str:
    return f"{url} refuses the key: set the environment variable OPENAI_API_KEY to the server's key"


class OpenAIEngine:
    """Engine over an `AsyncOpenAI` client, which itself retries 429 (as Retry-After asks), 5xx and
    lost connections with growing, jittered pauses, within the one deadline that a request has.

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
        """By hash, the latest last."""
        self._limit = "max_tokens"
        """What the server calls the most tokens of a reply."""
        self._penalises = True
        """Whether the server knows `repetition_penalty`, which OpenAI's protocol does not."""
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
        penalty = sampling.repetition_penalty if self._penalises else 1
        extra = {"repetition_penalty": penalty} if penalty != 1 else {}
        answer, room = await self._ask(
            await self._messages(request.prompt),
            sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed % 2**63,
            extra_body=extra,
            **schema_arguments(request.schema),
        )
        reply = answer.choices[0]
        if reply.finish_reason == "content_filter":
            raise EngineError("the server's filter withheld the reply")
        text, reasoning = text_and_reasoning(reply.message)
        if reasoning and not self._reasons:
            self._reasons = True
            log.warning(
                "%s reasons before it answers, which costs tokens and spoils checks that read the first"
                " token; most servers turn it off with"
                " model.<role>.chat_template_kwargs.enable_thinking=false",
                self._model.name,
            )
        usage = token_usage(answer)
        ended = finish(reply.finish_reason, usage.generated_tokens or room, sampling.max_tokens)
        return Generated(text, ended, usage, reasoning)

    async def choose(self, request: Choose) -> Chosen:
        """Compare the options as the reply's first token, or by its first word."""
        if self._logprobs:
            answer = await self._first_token(request.prompt)
            told = first_tokens(answer)
        else:
            answer, _ = await self._ask(await self._messages(request.prompt), _WORDS, temperature=0)
            word = re.search(r"[\w/]+", text_and_reasoning(answer.choices[0].message)[0])
            told = [(word.group(), 0.0)] if word else []
        return choice(told, request.options, token_usage(answer))

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
        """A reply of one token, with the likeliest that it could have been (see `first_tokens`)."""
        messages = await self._messages(prompt)
        told: dict[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": _TOP}
        answer, _ = await self._ask(messages, 1, first_tokens, **told)
        return answer

    async def score(self, request: Score) -> Scored:
        """Rate a text as the reply, by vLLM's extension of the protocol."""
        if not request.text:
            return Scored(())
        messages = [*await self._messages(request.prompt), {"role": "assistant", "content": request.text}]
        extra = {"continue_final_message": True, "add_generation_prompt": False, "prompt_logprobs": 0}
        answer, _ = await self._ask(messages, 1, temperature=0, extra_body=extra)
        entries = getattr(answer, "prompt_logprobs", None)
        if not entries:
            raise EngineError("the server can't rate a given text: take engine=vllm, or serve with vLLM")
        pieces = [next(iter(entry.values())) for entry in entries if entry]
        tokens = tokens_of(
            [(piece["decoded_token"] or "", piece["logprob"]) for piece in pieces], request.text
        )
        return Scored(tokens, token_usage(answer)._replace(generated_tokens=0))

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
    ) -> tuple[Any, int]:
        """One chat completion of at most `room` tokens, fewer where the context is almost full, and how many
        it might have.

        An answer that `read` raises ValueError for counts as garbage: it is asked for once more.
        """
        import openai

        room = min(room, self.context_length or room)
        limit = self._limit
        asked = {"model": self._model.name, "messages": messages, limit: room, **settings}
        asked["extra_body"] = {**self._body, **(extra_body or {})}
        try:
            return await self._answered(asked, read), room
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            if "logprobs" in error.message:  # some hosts tell them of some models alone
                raise EngineError(f"the server refuses the request: {error.message}") from error
            raise EngineDead(_refused(str(self._client.base_url))) from error
        except openai.NotFoundError as error:
            raise EngineDead(
                f"{self._client.base_url} has no chat completions of {self._model.name}: "
                f"check engine.base_url and model.vlm.name ({error.message})"
            ) from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            said = _refusal(error)
            if limit != _LATER_LIMIT and _LATER_LIMIT in said:
                self._limit = _LATER_LIMIT
                return await self._ask(messages, room, read, extra_body, **settings)
            if extra_body and "repetition_penalty" in extra_body and "repetition_penalty" in said:
                if self._penalises:
                    log.warning(
                        "%s knows no repetition_penalty: replies are drawn without it", self._client.base_url
                    )
                self._penalises = False
                return await self._ask(messages, room, read, **settings)
            long = too_long(said, self.context_length)
            if long is None:
                raise EngineError(f"the server refuses the request: {said}") from error
            if 0 < (left := long.limit - long.tokens) < room:
                return await self._ask(messages, left, read, extra_body, **settings)
            raise long from error
        except TimeoutError as error:
            raise EngineError(f"no answer within engine.timeout={self._patience:g} seconds") from error
        except (openai.OpenAIError, ValueError, TypeError) as error:
            raise EngineError(f"{type(error).__name__}: {error.__cause__ or error}") from error

    async def _answered(self, asked: dict[str, Any], read: Read | None) -> Any:
        """What the server answers, at last; raises what `openai` raises, or TimeoutError."""
        import openai

        tries, left = 0, self._patience
        while True:
            try:
                async with self._free:
                    begun = time.monotonic()
                    async with asyncio.timeout(left):
                        answer = await self._client.chat.completions.create(**asked)
                if not getattr(answer, "choices", None):
                    raise ValueError("the server's answer is not a chat completion")
                if read:
                    read(answer)
                return answer
            except (ValueError, TypeError, openai.APIResponseValidationError):
                tries += 1
                if tries == _TRIES:
                    raise
                left -= time.monotonic() - begun
            except (TimeoutError, openai.APIConnectionError) as error:
                left -= time.monotonic() - begun
                late = isinstance(error, TimeoutError | openai.APITimeoutError)
                if await self._was_away():
                    left = self._patience  # what was lost with the server begins anew
                    continue
                if late:
                    raise TimeoutError from error
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
            task = self._pictures[image.hash] = asyncio.create_task(work)
            task.add_done_callback(lambda _: self._drop_pictures())
        self._pictures.move_to_end(image.hash)
        # One that gives up must not take the picture from the others who wait for it.
        return await asyncio.shield(self._pictures[image.hash])

    def _drop_pictures(self) -> None:
        """Forgets those that could not be encoded, and the oldest of more than can be kept."""
        for name, task in list(self._pictures.items()):
            if task.done() and (task.cancelled() or task.exception()):
                del self._pictures[name]
        sizes = {name: len(task.result()) for name, task in self._pictures.items() if task.done()}
        held = sum(sizes.values())
        for name in list(self._pictures)[:-1]:  # the latest is in use, however large
            if name in sizes and held > _PICTURE_BYTES:
                held -= sizes[name]
                del self._pictures[name]


def _data_url(image: Image, max_pixels: int | None) -> str:
    pixels = image.pixels
    if max_pixels and pixels.width * pixels.height > max_pixels:
        scale = math.sqrt(max_pixels / (pixels.width * pixels.height))
        pixels = pixels.resize((max(1, int(pixels.width * scale)), max(1, int(pixels.height * scale))))
    file = io.BytesIO()
    pixels.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
