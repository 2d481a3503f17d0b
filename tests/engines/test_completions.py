"""What a server's answers and refusals say."""

import json
import math

import pytest
from PIL import Image as Pillow

from scalecap.engines.base import EngineError, Image, Prompt, Usage
from scalecap.engines.completions import body, choice, most_alternatives, token_usage, tokens_of, too_long


@pytest.mark.parametrize(
    ("message", "tokens", "limit"),
    [
        ("Input length (3000) exceeds model's maximum context length (2048).", 3000, 2048),
        (
            "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 "
            "input tokens, which exceeds this limit",
            2049,
            2048,
        ),
        (
            "Requested token count exceeds the model's maximum context length of 2048 tokens. You requested "
            "a total of 2600 tokens: 2500 tokens from the input messages and 100 tokens for the completion.",
            2500,
            2048,
        ),
        ("The decoder prompt (length 5000) is longer than the maximum model length of 4096.", 5000, 4096),
    ],
)
def test_refusals_of_servers(message: str, tokens: int, limit: int) -> None:
    long = too_long(message, None)
    assert long
    assert (long.tokens, long.limit) == (tokens, limit)


def test_tokens_that_spell_a_text() -> None:
    pieces = [("<s>", -9.0), ("a", -1.0), (" c", -2.0), ("", -3.0), ("ä", -4.0), ("t", -5.0)]
    assert [tuple(token[:3]) for token in tokens_of(pieces, " cät")] == [
        (0, 2, -2.0),
        (2, 3, -7.0),
        (3, 4, -5.0),
    ]
    assert [tuple(token[:3]) for token in tokens_of(pieces, "ät")] == [(0, 1, -7.0), (1, 2, -5.0)]
    with pytest.raises(EngineError, match="spell"):
        tokens_of(pieces, "at")


@pytest.mark.parametrize("picture", [None, b"data:image/png;base64,AAAA"])
@pytest.mark.parametrize("system", ["", 'Be "brief".'])
@pytest.mark.parametrize("after", [[], [{"role": "assistant", "content": "A cat."}]])
def test_a_body_put_together_is_the_json_that_it_would_be(
    picture: bytes | None, system: str, after: list[dict[str, str]]
) -> None:
    text = 'Is it "A"}], \\ \x00 \u2028 ä \ud83d?'
    image = Image("h", Pillow.new("RGB", (1, 1))) if picture else None
    pieces = body({"model": "m", "seed": 3}, Prompt(text, image, system), picture, after)
    content = (
        text
        if picture is None
        else [
            {"type": "image_url", "image_url": {"url": picture.decode()}},
            {"type": "text", "text": text},
        ]
    )
    turns = [{"role": "system", "content": system}] if system else []
    assert json.loads(b"".join(pieces)) == {
        "model": "m",
        "seed": 3,
        "messages": [*turns, {"role": "user", "content": content}, *after],
    }
    assert picture is None or picture in pieces


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens_details": None}])
def test_a_server_that_counts_nothing(usage: object) -> None:
    assert token_usage({"usage": usage}) == Usage()


def test_what_a_server_counts() -> None:
    told = {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens": 2}
    assert token_usage({"usage": told}) == Usage(7, 3, 2)


@pytest.mark.parametrize(
    ("refusal", "most"),
    [
        ("Requested sample logprobs of 20, which is greater than max allowed: 5", 5),
        ("Invalid value for 'top_logprobs': must be less than or equal to 5.", 5),
        ("Input should be less than or equal to 8: top_logprobs", 8),
        ("top_logprobs must be between 0 and 5", 5),
        ("integer above maximum value. Expected a value <= 5, but got 20 instead.: top_logprobs", 5),
        ("logprobs are not supported", None),
        ("This model's maximum context length is 100 tokens", None),
    ],
)
def test_how_many_a_server_tells_at_most(refusal: str, most: int | None) -> None:
    assert most_alternatives(refusal) == most


@pytest.mark.parametrize(
    ("told", "cut", "probabilities"),
    [
        ({"yes": 0.6, "no": 0.2, "It": 0.1}, True, (0.75, 0.25)),
        ({"yes": 0.9, "Yes": 0.05, "It": 0.01}, True, (1, 0)),  # no has 0.01 at most
        ({"yes": 0.3, "It": 0.2, "The": 0.15}, True, (0, 0)),  # no may have 0.15
        ({"yes": 0.3, "It": 0.2, "The": 0.15}, False, (1, 0)),
        ({"It": 0.6, "The": 0.2}, True, (0, 0)),
    ],
)
def test_an_option_that_was_not_told_may_be_as_likely_as_the_last_that_was(
    told: dict[str, float], cut: bool, probabilities: tuple[float, float]
) -> None:
    top = [(word, math.log(p)) for word, p in told.items()]
    assert choice(top, ("yes", "no"), Usage(), cut=cut).probabilities == pytest.approx(probabilities)
