"""What servers list about a model, and whether they serve the same one."""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from scalecap.engines.connection import Connection, Refused
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.engines.weights import ModelError

log = logging.getLogger(__name__)

Card = Mapping[str, Any]
"""What a server lists about a model; vLLM's tells its path and its context. Empty where it lists nothing."""


class AwayError(ModelError):
    """No server answers there."""


async def card_of(connection: Connection, model: ModelSettings, seconds: float) -> Card:
    """What the server lists about the model.

    Raises:
        AwayError: it does not answer within so many seconds.
        ModelError: it lists other models alone, or refuses the key.
    """
    at = connection.shown
    try:
        async with asyncio.timeout(seconds):
            listed = (await connection.get("/models"))["data"]
        served = {str(each["id"]): dict(each) for each in listed}
    except TimeoutError as error:
        raise AwayError(f"no server answers at engine.base_url={at} within {seconds:g} seconds") from error
    except ConnectionError as error:
        raise AwayError(f"no server answers at engine.base_url={at} ({error})") from error
    except Refused as refused:
        if refused.status in (401, 403):
            raise ModelError(key_refused(connection)) from refused
        if refused.status in (502, 503, 504):
            raise AwayError(f"no server answers at engine.base_url={at} ({refused})") from refused
        log.debug("the server does not list its models: %s", refused)
        return {}
    except (LookupError, TypeError, ValueError) as error:  # some that answer requests list nothing
        log.debug("the server does not list its models: %s", error)
        return {}
    if served and model.name not in served:
        names = ", ".join(list(served)[:10])
        raise ModelError(f"{at} has no model {model.name}: set model.vlm.name to one of {names}")
    return served.get(model.name, {})


async def cards(
    connections: Sequence[Connection], model: ModelSettings, seconds: float
) -> dict[Connection, Card | AwayError]:
    """What each of the servers lists, or that it is away.

    Raises ModelError when all are away, or any has another model or refuses the key; it names each.
    """
    told = await asyncio.gather(
        *(card_of(each, model, seconds) for each in connections), return_exceptions=True
    )
    found: dict[Connection, Card | AwayError] = {}
    wrong: list[str] = []
    for connection, each in zip(connections, told, strict=True):
        if isinstance(each, ModelError) and not isinstance(each, AwayError):
            wrong.append(str(each))
        elif isinstance(each, BaseException) and not isinstance(each, AwayError):
            raise each
        else:
            found[connection] = each
    away = [str(each) for each in found.values() if isinstance(each, AwayError)]
    if wrong or len(away) == len(connections):
        raise ModelError("; ".join([*wrong, *away]))
    return found


def agreed(cards: Mapping[Connection, Card], engine: EngineSettings) -> Card:
    """What the servers list, which is to be the same of each, where it tells.

    Raises ModelError when their contexts differ, or their weights do and `engine.identity` does not say that
    they are one model.
    """
    same: dict[str, Any] = {}
    for key, fix in (
        ("max_model_len", "serve them with the same context"),
        ("root", 'engine.identity="…" says that they are one model'),
    ):
        told = {each.shown: card[key] for each, card in cards.items() if card.get(key)}
        if len(set(map(str, told.values()))) > 1 and not (key == "root" and engine.identity):
            differing = ", ".join(f"{value} at {at}" for at, value in told.items())
            raise ModelError(f"the servers of engine.base_url differ in {key}: {differing}; {fix}")
        if told:
            same[key] = next(iter(told.values()))
    return same


def found(model: ModelSettings, engine: EngineSettings, card: Card, told: str) -> str:
    """What answers, as far as it can be known from here: the name served, by whom, and how it is read."""
    parts = [model.name]
    if engine.identity:
        parts.append(f"is={engine.identity}")
    else:
        parts += [f"root={root}"] if (root := card.get("root")) else []
        parts.append(f"at={','.join(sorted(map(address, engine.addresses)))}")
    return " ".join([*parts, told] if told else parts)


def address(url: str) -> str:
    """The URL without what lets its reader in: a user's name and password, and a digest of its query."""
    parts = urlsplit(url)
    query = f"?{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{query}"


def key_refused(connection: Connection) -> str:
    """What to do about a key that a server refuses."""
    return (
        f"{connection.shown} refuses the key: set the environment variable OPENAI_API_KEY to the server's key"
    )
