"""What an engine is asked, what it answers, and how it says no.

Messages are always system, image, text, so that all requests about one image share a prefix.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image as PixelImage


Finish = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. `temperature=0` is greedy; the seed is the request's, not here."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 512
    """Most tokens generated; an engine lowers it to what the context leaves."""
    repetition_penalty: float = 1.0

    def problems(self) -> list[str]:
        """Values out of their range, one line each."""
        ranges = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        return [
            f"{name}={getattr(self, name)}: must be {told}"
            for name, (within, told) in ranges.items()
            if not within or getattr(self, name) == math.inf
        ]


class Image(NamedTuple):
    """A decoded picture, made once a row and sent by its hash afterwards."""

    hash: str
    """Hex digest of size and RGB pixels: equal pixels have equal hashes, whatever the file."""
    pixels: "PixelImage"
    """Mode RGB, EXIF orientation applied."""

    @classmethod
    def of(cls, pixels: "PixelImage") -> "Image":
        """Pixels of mode RGB as a picture that is known by them."""
        digest = hashlib.blake2b(f"{pixels.width}x{pixels.height}:".encode(), digest_size=20)
        digest.update(pixels.tobytes())
        return cls(digest.hexdigest(), pixels)


@dataclass(frozen=True)
class Prompt:
    """System, image, text: one user turn after a system turn."""

    text: str
    image: Image | None = None
    system: str = "You are a helpful assistant."


@dataclass(frozen=True)
class Generate:
    """Ask for free text."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    schema: str | None = None
    """A JSON schema, as JSON text. An engine that can constrain decoding lets no other reply come; one that
    can't ignores it, so whoever asks validates the reply."""


@dataclass(frozen=True)
class Choose:
    """Ask which of a few options the reply would begin with: one token, with probabilities."""

    prompt: Prompt
    options: tuple[str, ...] = ("yes", "no")


@dataclass(frozen=True)
class Score:
    """Ask how likely a given text is as the reply, token by token (nothing is generated)."""

    prompt: Prompt
    text: str


class Usage(NamedTuple):
    """Token counts of one request."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt's, those not computed again; None where an engine does not tell."""
    generated_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the generated ones, before the answer; 0 where an engine does not count them."""


@dataclass(frozen=True)
class Generated:
    """A free reply. `finish` is "length" when `max_tokens` cut it, "context" when the context did."""

    text: str
    """The answer alone; empty when the reply ended within its reasoning."""
    finish: Finish
    usage: Usage = Usage()
    reasoning: str = ""
    """What the model wrote before the answer (see `scalecap.engines.reasoning`)."""


@dataclass(frozen=True)
class Chosen:
    """Probability of each option, summed over its spellings and normalised to one.

    `mass` is the probability that the model gave to all options together before that (0 to 1);
    a small mass means that it wanted to say something else. It is nan where the engine can't tell.
    With a mass of 0 no option was said, and each has probability 0.
    """

    probabilities: tuple[float, ...]
    mass: float = 1.0
    usage: Usage = Usage()

    @classmethod
    def among(cls, told: Sequence[float], usage: Usage) -> "Chosen":
        """From what the model gave to each option, of all that it could say."""
        mass = math.fsum(told)
        return cls(tuple(each / mass if mass else 0.0 for each in told), min(mass, 1.0), usage)

    @property
    def answered(self) -> bool:
        """Whether an option was said."""
        return any(self.probabilities)

    @property
    def known_mass(self) -> float | None:
        """The mass, or None where the engine can't tell it."""
        return None if math.isnan(self.mass) else self.mass


class Token(NamedTuple):
    """One token of a scored text: characters `start:end`, log-probability, raw logit if known.

    The log-probability is nan where an engine tells raw logits alone.
    """

    start: int
    end: int
    logprob: float
    logit: float | None = None


@dataclass(frozen=True)
class Scored:
    """A scored text; its tokens cover every character once, in order."""

    tokens: tuple[Token, ...]
    usage: Usage = Usage()


def finish(reason: str | None, generated: int, wanted: int) -> Finish:
    """What ended a reply of so many tokens of those wanted, by the reason that an engine tells."""
    if reason != "length":
        return "stop"
    return "context" if generated < wanted else "length"


Request = Generate | Choose | Score
Reply = Generated | Chosen | Scored


class EngineError(Exception):
    """This request could not be answered; others may be. `kind` is a word for the row's record."""

    kind = "engine"


class PromptTooLong(EngineError):
    """The prompt leaves no room for a reply in the model's context."""

    kind = "prompt_too_long"

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens and the model's context is {limit}")
        self.tokens = tokens
        self.limit = limit


class EngineDead(EngineError):
    """The engine can answer nothing any more; the run stops and can be resumed."""

    kind = "engine_dead"


class Engine(Protocol):
    """Answers requests, many at once; each one may raise `EngineError`."""

    identity: str
    """What determines replies: model, revision or content hash, dtype. Part of the cache key."""
    context_length: int | None
    """Tokens of prompt and reply together; None when the server does not tell."""
    concurrency: int
    """Requests in flight that keep the engine busy."""
    kv_tokens: int | None
    """Tokens that its KV cache holds, of prompts to be used again too; None when that is not known."""

    async def generate(self, request: Generate) -> Generated: ...

    async def choose(self, request: Choose) -> Chosen: ...

    async def score(self, request: Score) -> Scored: ...

    async def close(self) -> None: ...
