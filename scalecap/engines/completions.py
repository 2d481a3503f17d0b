"""OpenAI's chat completion protocol: request bodies, and what replies and error messages contain."""

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scalecap.engines.base import Chosen, Prompt, PromptTooLong, Token, Unsupported, Usage
from scalecap.engines.reasoning import split_reasoning

PROBE = Prompt("Is a cat an animal? Answer yes or no.", system="")
"""Sent when an engine is opened, to find out whether the server returns log-probabilities."""

_MAX_SHIFT = 0.02
"""Largest change of an option's probability that an option missing from the alternatives may cause."""


def request_body(
    settings: Mapping[str, Any],
    prompt: Prompt,
    image_url: bytes | None,
    extra_turns: Sequence[dict[str, str]] = (),
) -> list[bytes]:
    """The JSON of a request in pieces; the image is a piece of its own, neither scanned nor copied.

    Args:
        settings: all keys of the body but `messages`.
        image_url: data URL of the prompt's image.
        extra_turns: messages after the prompt's.
    """
    turns = [{"role": "system", "content": prompt.system}] if prompt.system else []
    if image_url is None:
        turns += [{"role": "user", "content": prompt.text}, *extra_turns]
        return [json.dumps({**settings, "messages": turns}).encode()]
    before = "".join(json.dumps(turn) + "," for turn in turns)
    opening = f'{json.dumps(settings)[:-1]},"messages":[{before}{{"role":"user","content":['
    rest = [json.dumps({"type": "text", "text": prompt.text}) + "]}", *map(json.dumps, extra_turns)]
    return [
        (opening + '{"type":"image_url","image_url":{"url":"').encode(),
        image_url,
        ('"}},' + ",".join(rest) + "]}").encode(),
    ]


def response_format(schema: str | None) -> dict[str, Any]:
    """Arguments of a request whose reply must follow a JSON schema."""
    if schema is None:
        return {}
    json_schema = {"name": "reply", "schema": json.loads(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


def first_choice(response: Any) -> Mapping[str, Any]:
    """The first choice of a chat completion. Raises ValueError if the response is not one."""
    try:
        choice = response["choices"][0]
        if isinstance(choice, Mapping) and isinstance(choice["message"], Mapping):
            return choice
    except (KeyError, IndexError, TypeError):
        pass
    raise ValueError("the server's answer is not a chat completion")


def text_and_reasoning(message: Mapping[str, Any]) -> tuple[str, str]:
    """The answer and the reasoning of a message, in which servers separate them or not."""
    # JSON can hold half of a surrogate pair, which can't be encoded later on.
    content, *separate = (
        value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
        for value in (message.get(name) for name in ("content", "reasoning_content", "reasoning"))
    )
    text, inline = split_reasoning(content)
    # Some servers send the same reasoning under both names.
    return text, "\n\n".join(dict.fromkeys(filter(None, [*separate, inline])))


def top_logprobs(response: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities. Raises ValueError if there are none."""
    try:
        alternatives = first_choice(response)["logprobs"]["content"][0]["top_logprobs"]
        top = [(str(each["token"]), float(each["logprob"])) for each in alternatives]
    except (KeyError, IndexError, TypeError):
        top = []
    if not top:
        raise ValueError("the server's answer has no logprobs")
    return top


def choose_option(
    top: list[tuple[str, float]], options: tuple[str, ...], usage: Usage, *, truncated: bool = False
) -> Chosen:
    """Compares options by the probabilities of first tokens; all are 0 if no option is among the tokens.

    Args:
        top: the likeliest first tokens with their log-probabilities.
        truncated: the list is so short that an option may be missing, which is at most as likely as the last
            token in it, and as all that are not in it. If that could change a probability by more than 0.02,
            no option counts as chosen.
    """
    words = [option.casefold() for option in options]
    # No tokenizer joins a letter and a mark, unless it has the whole option as one token.
    firsts = [re.split(r"\W", word)[0] for word in words]
    option_probs = [0.0] * len(options)
    for token, logprob in top:
        word = token.strip().casefold()
        if word in words:
            option_probs[words.index(word)] += math.exp(logprob)
        elif word and firsts.count(word) == 1:
            option_probs[firsts.index(word)] += math.exp(logprob)
    if truncated and 0.0 in option_probs and (mass := math.fsum(option_probs)):
        probs = [math.exp(logprob) for _, logprob in top]
        missing = min(*probs, 1 - math.fsum(probs))
        if missing / (mass + missing) > _MAX_SHIFT:
            return Chosen((0.0,) * len(options), min(mass, 1.0), usage)
    return Chosen.normalized(option_probs, usage)


def max_top_logprobs(error: str) -> int | None:
    """The largest `top_logprobs` that the server accepts, by its error message; None if it does not say."""
    limit = re.search(
        r"(?:less than or equal to|at most|up to|between \d+ and|<=|max\w*(?: \w+)*:?)\s*(\d+)",
        error if "logprobs" in error else "",
        re.IGNORECASE,
    )
    return int(limit[1]) if limit else None


def align_tokens(pieces: list[tuple[str, float]], text: str) -> tuple[Token, ...]:
    """The last of a prompt's tokens, those that spell `text`.

    Tokens without text, the first bytes of a character, are merged into the token that ends it.

    Args:
        pieces: text and log-probability of each token.

    Raises:
        Unsupported: no run of tokens at the end spells the text.
    """
    ends = itertools.accumulate((len(piece) for piece, _ in reversed(pieces)), initial=0)
    first = len(pieces) - next((count for count, length in enumerate(ends) if length >= len(text)), 0)
    if "".join(piece for piece, _ in pieces[first:]) != text:
        raise Unsupported("the server's tokens don't spell the text to be scored")
    while first > 0 and not pieces[first - 1][0]:
        first -= 1
    tokens: list[Token] = []
    start, pending = 0, 0.0
    for piece, logprob in pieces[first:]:
        pending += logprob
        if piece:
            tokens.append(Token(start, start + len(piece), pending))
            start, pending = start + len(piece), 0.0
    return tuple(tokens)


def prompt_too_long(error: str, context_length: int | None) -> PromptTooLong | None:
    """The numbers in a server's error about the prompt's length; None if the error is about something else.

    Args:
        context_length: the model's, if it is known; used if the message does not contain it.
    """
    if not re.search(
        r"context (length|window|size)|maximum model length|max_model_len", error, re.IGNORECASE
    ):
        return None
    numbers = [int(number) for number in re.findall(r"\d+", error)]
    limit = re.search(r"(?:context length|model length|context size|max_model_len)\D{0,20}(\d+)", error)
    tokens = re.search(r"(\d+) (?:input tokens|tokens from the input|in the messages)", error)
    most = int(limit.group(1)) if limit else context_length or 0
    return PromptTooLong(int(tokens.group(1)) if tokens else max(numbers, default=most + 1), most)


def token_usage(response: Mapping[str, Any]) -> Usage:
    """Token counts, as far as the server reports them."""

    def count(*path: str) -> int | None:
        value: Any = response.get("usage")
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if isinstance(value, int) else None

    return Usage(
        count("prompt_tokens") or 0,
        count("prompt_tokens_details", "cached_tokens"),
        count("completion_tokens") or 0,
        count("completion_tokens_details", "reasoning_tokens") or 0,
    )
