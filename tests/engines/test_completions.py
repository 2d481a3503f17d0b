"""Request bodies, and what is read from replies and error messages."""

import json
import math

import pytest
from PIL import Image as Pillow

from scalecap.engines.base import EngineError, Image, Prompt, Usage
from scalecap.engines.completions import (
    align_tokens,
    choose_option,
    max_top_logprobs,
    prompt_too_long,
    request_body,
    token_usage,
)


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
def test_prompt_too_long(message: str, tokens: int, limit: int) -> None:
    error = prompt_too_long(message, None)
    assert error
    assert (error.tokens, error.limit) == (tokens, limit)


def test_tokens_that_spell_a_text() -> None:
    pieces = [("<s>", -9.0), ("a", -1.0), (" c", -2.0), ("", -3.0), ("ä", -4.0), ("t", -5.0)]
    assert [tuple(token[:3]) for token in align_tokens(pieces, " cät")] == [
        (0, 2, -2.0),
        (2, 3, -7.0),
        (3, 4, -5.0),
    ]
    assert [tuple(token[:3]) for token in align_tokens(pieces, "ät")] == [(0, 1, -7.0), (1, 2, -5.0)]
    with pytest.raises(EngineError, match="spell"):
        align_tokens(pieces, "at")


@pytest.mark.parametrize("encoded", [None, b"data:image/png;base64,AAAA"])
@pytest.mark.parametrize("system", ["", 'Be "brief".'])
@pytest.mark.parametrize("after", [[], [{"role": "assistant", "content": "A cat."}]])
def test_the_pieces_of_a_body_are_json(
    encoded: bytes | None, system: str, after: list[dict[str, str]]
) -> None:
    text = 'Is it "A"}], \\ \x00 \u2028 ä \ud83d?'
    image = Image("h", Pillow.new("RGB", (1, 1))) if encoded else None
    pieces = request_body({"model": "m", "seed": 3}, Prompt(text, image, system), encoded, after)
    content = (
        text
        if encoded is None
        else [
            {"type": "image_url", "image_url": {"url": encoded.decode()}},
            {"type": "text", "text": text},
        ]
    )
    turns = [{"role": "system", "content": system}] if system else []
    assert json.loads(b"".join(pieces)) == {
        "model": "m",
        "seed": 3,
        "messages": [*turns, {"role": "user", "content": content}, *after],
    }
    assert encoded is None or encoded in pieces


@pytest.mark.parametrize("usage", [None, [], {}, {"prompt_tokens": None}, {"prompt_tokens_details": None}])
def test_a_server_that_reports_no_usage(usage: object) -> None:
    assert token_usage({"usage": usage}) == Usage()


def test_token_usage() -> None:
    reported = {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens": 2}
    assert token_usage({"usage": reported}) == Usage(7, 3, 2)


@pytest.mark.parametrize(
    ("error", "most"),
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
def test_the_largest_top_logprobs(error: str, most: int | None) -> None:
    assert max_top_logprobs(error) == most


@pytest.mark.parametrize(
    ("returned", "truncated", "probabilities"),
    [
        ({"yes": 0.6, "no": 0.2, "It": 0.1}, True, (0.75, 0.25)),
        ({"yes": 0.9, "Yes": 0.05, "It": 0.01}, True, (1, 0)),  # no has 0.01 at most
        ({"yes": 0.3, "It": 0.2, "The": 0.15}, True, (0, 0)),  # no may have 0.15
        ({"yes": 0.3, "It": 0.2, "The": 0.15}, False, (1, 0)),
        ({"yes": 0.9, "It": 0.1}, True, (1, 0)),  # nothing is left for no
        ({"It": 0.6, "The": 0.2}, True, (0, 0)),
    ],
)
def test_a_missing_option_may_be_as_likely_as_the_last_token_returned(
    returned: dict[str, float], truncated: bool, probabilities: tuple[float, float]
) -> None:
    top = [(word, math.log(p)) for word, p in returned.items()]
    assert choose_option(top, ("yes", "no"), Usage(), truncated=truncated).probabilities == pytest.approx(
        probabilities
    )


def test_an_option_of_several_tokens_begins_with_its_first() -> None:
    """Tokenizers cut "n/a" before the slash, or have it as one token."""
    top = [("n", math.log(0.5)), (" no", math.log(0.2)), ("N/A", math.log(0.1)), ("Yes", math.log(0.2))]
    chosen = choose_option(top, ("yes", "no", "n/a"), Usage())
    assert (chosen.probabilities, chosen.mass) == (pytest.approx((0.2, 0.2, 0.6)), 1)
    ambiguous = choose_option([("n", math.log(0.5)), ("no", math.log(0.5))], ("no", "n/a", "n-b"), Usage())
    assert ambiguous.probabilities == (1, 0, 0)
