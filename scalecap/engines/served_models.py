"""What servers list about a model at `/v1/models`, and whether they serve the same one."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from scalecap.engines.connection import Connection, StatusError
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError

log = logging.getLogger(__name__)

Card = Mapping[str, Any]
"""A server's entry for a model; vLLM's has its path (`root`) and context (`max_model_len`). Empty if the
server lists no models."""


class ServerUnavailableError(ModelError):
    """No server answers at the address."""


async def fetch_card(connection: Connection, model: ModelSettings, seconds: float) -> Card:
    """The server's entry for the model.

    Args:
        seconds: how long the server has to answer.

    Raises:
        ServerUnavailableError: it does not answer.
        ModelError: it lists only other models, or rejects the API key.
    """
    url = connection.display_url
    try:
        async with asyncio.timeout(seconds):
            listed = (await connection.get("/models"))["data"]
        served = {str(each["id"]): dict(each) for each in listed}
    except TimeoutError as error:
        raise ServerUnavailableError(
            f"no server answers at engine.base_url={url} within {seconds:g} seconds"
        ) from error
    except (ConnectionError, StatusError, LookupError, TypeError, ValueError) as error:
        status = error.status if isinstance(error, StatusError) else None
        if status in (401, 403):
            raise ModelError(rejected_key(connection)) from error
        if isinstance(error, ConnectionError) or status in (502, 503, 504):
            raise ServerUnavailableError(f"no server answers at engine.base_url={url} ({error})") from error
        log.debug("the server does not list its models: %s", error)  # some servers that work list nothing
        return {}
    if served and model.name not in served:
        names = ", ".join(list(served)[:10])
        raise ModelError(f"{url} has no model {model.name}: set model.vlm.name to one of {names}")
    return served.get(model.name, {})


async def fetch_cards(
    connections: Sequence[Connection], model: ModelSettings, seconds: float
) -> tuple[dict[Connection, Card], dict[Connection, ServerUnavailableError]]:
    """The entries for the model of the servers that answer, and the errors of those that are down.

    Raises:
        ModelError: all servers are down, or one has other models or rejects the API key; names each of them.
    """
    results = await asyncio.gather(
        *(fetch_card(each, model, seconds) for each in connections), return_exceptions=True
    )
    cards: dict[Connection, Card] = {}
    down: dict[Connection, ServerUnavailableError] = {}
    wrong: list[str] = []
    for connection, result in zip(connections, results, strict=True):
        if isinstance(result, ServerUnavailableError):
            down[connection] = result
        elif isinstance(result, ModelError):
            wrong.append(str(result))
        elif isinstance(result, BaseException):
            raise result
        else:
            cards[connection] = result
    if wrong or not cards:
        raise ModelError("; ".join([*wrong, *map(str, down.values())]))
    return cards, down


def merge_cards(cards: Mapping[Connection, Card], engine: EngineSettings) -> Card:
    """What the servers list about the model, after checking that they agree.

    Raises:
        ModelError: their context lengths differ, or their weights do and `engine.identity` is not set.
    """
    merged: dict[str, Any] = {}
    for key, fix in (
        ("max_model_len", "serve them with the same context length"),
        ("root", 'if they run the same model, set engine.identity="…"'),
    ):
        values = {each.display_url: card[key] for each, card in cards.items() if card.get(key)}
        if len(set(map(str, values.values()))) > 1 and not (key == "root" and engine.identity):
            differing = ", ".join(f"{value} at {url}" for url, value in values.items())
            raise ModelError(f"the servers of engine.base_url differ in {key}: {differing}; {fix}")
        if values:
            merged[key] = next(iter(values.values()))
    return merged


def served_model(model: ModelSettings, engine: EngineSettings, card: Card, logprobs: str) -> str:
    """The model part of the engine's identity: name, servers, and how log-probabilities are read.

    Args:
        logprobs: `choices=text`, `top_logprobs=5`, or empty for the usual twenty.
    """
    parts = [model.name]
    if engine.identity:
        parts.append(f"is={engine.identity}")
    else:
        parts += [f"root={root}"] if (root := card.get("root")) else []
        parts.append(f"at={','.join(sorted(map(address, engine.addresses)))}")
    return " ".join([*parts, logprobs] if logprobs else parts)


def address(url: str) -> str:
    """The URL without credentials; a query string is replaced by a digest."""
    parts = urlsplit(url)
    query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{query}"


def rejected_key(connection: Connection) -> str:
    """Error message for a rejected API key."""
    return (
        f"{connection.display_url} refuses the key: set the environment variable OPENAI_API_KEY to the"
        " server's key"
    )
