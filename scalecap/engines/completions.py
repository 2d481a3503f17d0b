"""What OpenAI's protocol says in a chat completion: its text, its tokens' probabilities, and refusals."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scalecap.engines.base import Chosen, EngineError, Prompt, PromptTooLong, Token, Usage
from scalecap.engines.reasoning import split_reasoning

PROBE = Prompt("Is a cat an animal? Answer yes or no.")
"""Asked when an engine is opened, to see whether the server tells log-probabilities."""

_DOUBT = 0.02
"""Most that an option which was not told may move a probability."""


def body(
    settings: Mapping[str, Any],
    prompt: Prompt,
    picture: bytes | None,
    after: Sequence[dict[str, str]] = (),
) -> list[bytes]:
    """The JSON of a request in pieces, one of which is the picture, neither scanned nor copied.

    Args:
        settings: all keys but `messages`.
        picture: its data URL.
        after: turns after the prompt's.
    """
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    if picture is None:
        turns += [{"role": "user", "content": prompt.text}, *after]
        return [json.dumps({**settings, "messages": turns}).encode()]
    before = "".join(json.dumps(turn) + "," for turn in turns)
    opening = f'{json.dumps(settings)[:-1]},"messages":[{before}{{"role":"user","content":['
    rest = [json.dumps({"type": "text", "text": prompt.text}) + "]}", *map(json.dumps, after)]
    return [
        (opening + '{"type":"image_url","image_url":{"url":"').encode(),
        picture,
        ('"}},' + ",".join(rest) + "]}").encode(),
    ]


def first_choice(answer: Any) -> Mapping[str, Any]:
    """The reply with what is told about it. ValueError when the answer is no chat completion."""
    try:
        reply = answer["choices"][0]
        if isinstance(reply, Mapping) and isinstance(reply["message"], Mapping):
            return reply
    except (KeyError, IndexError, TypeError):
        pass
    raise ValueError("the server's answer is not a chat completion")


def text_and_reasoning(message: Mapping[str, Any]) -> tuple[str, str]:
    """Answer and reasoning, which servers tell apart or leave in one text."""
    # JSON can hold half a character, which nothing else can.
    content, *apart = (
        told.encode("utf-8", "replace").decode() if isinstance(told, str) else ""
        for told in (message.get(name) for name in ("content", "reasoning_content", "reasoning"))
    )
    text, before = split_reasoning(content)
    # Some servers send the same reasoning under both names.
    return text, "\n\n".join(dict.fromkeys(filter(None, [*apart, before])))


def schema_arguments(schema: str | None) -> dict[str, Any]:
    """What asks a server for replies that follow a schema."""
    if schema is None:
        return {}
    wanted = {"name": "reply", "schema": json.loads(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def first_tokens(answer: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities. ValueError when the answer has none."""
    try:
        told = first_choice(answer)["logprobs"]["content"][0]["top_logprobs"]
        top = [(str(each["token"]), float(each["logprob"])) for each in told]
    except (KeyError, IndexError, TypeError):
        top = []
    if not top:
        raise ValueError("the server's answer has no logprobs")
    return top


def choice(
    top: list[tuple[str, float]], options: tuple[str, ...], usage: Usage, *, cut: bool = False
) -> Chosen:
    """The choice that first tokens and their log-probabilities tell; 0 each where no option is among them.

    Args:
        cut: whether so few tokens were told that an option may be missing which is as likely as the last of
            them. Where that could move a probability by more than 0.02, the choice counts as none.
    """
    spelt = [option.casefold() for option in options]
    each = [0.0] * len(options)
    for token, logprob in top:
        if (word := token.strip().casefold()) in spelt:
            each[spelt.index(word)] += math.exp(logprob)
    if cut and 0.0 in each and (mass := math.fsum(each)):
        last = math.exp(min(logprob for _, logprob in top))
        if last / (mass + last) > _DOUBT:
            return Chosen((0.0,) * len(options), min(mass, 1.0), usage)
    return Chosen.among(each, usage)


def most_alternatives(refusal: str) -> int | None:
    """How many likely tokens a server tells at most, by its refusal to tell more; None: it doesn't say."""
    most = re.search(
        r"(?:less than or equal to|at most|up to|between \d+ and|<=|max\w*(?: \w+)*:?)\s*(\d+)",
        refusal if "logprobs" in refusal else "",
        re.IGNORECASE,
    )
    return int(most[1]) if most else None


def tokens_of(pieces: list[tuple[str, float]], text: str) -> tuple[Token, ...]:
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


def too_long(message: str, context: int | None) -> PromptTooLong | None:
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


def token_usage(answer: Mapping[str, Any]) -> Usage:
    """Tokens as far as the server counts them."""

    def told(*path: str) -> int | None:
        found: Any = answer.get("usage")
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, int) else None

    return Usage(
        told("prompt_tokens") or 0,
        told("prompt_tokens_details", "cached_tokens"),
        told("completion_tokens") or 0,
        told("completion_tokens_details", "reasoning_tokens") or 0,
    )
