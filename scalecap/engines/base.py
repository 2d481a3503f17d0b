"""The interface of engines: requests, replies and errors.

Messages are always in the order system, image, text, so that all requests about one image share a prefix.
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
    """Sampling parameters. `temperature=0` is greedy; the seed belongs to the request."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 512
    """Limit on generated tokens; an engine lowers it to what is left of the context."""
    repetition_penalty: float = 1.0

    def problems(self) -> list[str]:
        """Values out of range, one line each."""
        ranges = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        return [
            f"{name}={getattr(self, name)}: must be {expected}"
            for name, (within, expected) in ranges.items()
            if not within or getattr(self, name) == math.inf
        ]


class Image(NamedTuple):
    """A decoded image, made once per row."""

    hash: str
    """Hex digest of size and RGB pixels: the same for equal pixels from different files."""
    pixels: "PixelImage"
    """Mode RGB, EXIF orientation applied."""

    @classmethod
    def of(cls, pixels: "PixelImage") -> "Image":
        """From pixels of mode RGB."""
        digest = hashlib.blake2b(f"{pixels.width}x{pixels.height}:".encode(), digest_size=20)
        digest.update(pixels.tobytes())
        return cls(digest.hexdigest(), pixels)


@dataclass(frozen=True)
class Prompt:
    """A system turn and a user turn, which is an image and a text."""

    text: str
    image: Image | None = None
    system: str = "You are a helpful assistant."


@dataclass(frozen=True)
class Generate:
    """A request for free text."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    schema: str | None = None
    """A JSON schema, as JSON text. Engines that support constrained decoding follow it; others ignore it, so
    the caller must validate the reply."""


@dataclass(frozen=True)
class Choose:
    """A request for the probabilities of a few options as the beginning of the reply."""

    prompt: Prompt
    options: tuple[str, ...] = ("yes", "no")


@dataclass(frozen=True)
class Score:
    """A request for the log-probability of each token of a given reply; nothing is generated."""

    prompt: Prompt
    text: str


class Usage(NamedTuple):
    """Token counts of one request."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; None if the engine does not report it."""
    generated_tokens: int = 0
    reasoning_tokens: int = 0
    """Generated tokens before the answer; 0 if the engine does not count them."""


@dataclass(frozen=True)
class Generated:
    """A generated reply. `finish` is "length" if `max_tokens` cut it off, "context" if the context did."""

    text: str
    """The answer only; empty if the reply ended within its reasoning."""
    finish: Finish
    usage: Usage = Usage()
    reasoning: str = ""
    """What the model wrote before the answer (see `scalecap.engines.reasoning`)."""


@dataclass(frozen=True)
class Chosen:
    """Probability of each option, summed over its spellings and normalised to one.

    `mass` is the probability of all options together before normalisation (0 to 1); if it is small the model
    would rather have said something else. It is nan if the engine does not know it. With a mass of 0 no
    option was chosen, and each has probability 0.
    """

    probabilities: tuple[float, ...]
    mass: float = 1.0
    usage: Usage = Usage()

    @classmethod
    def normalized(cls, option_probs: Sequence[float], usage: Usage) -> "Chosen":
        """From the probability of each option among all replies."""
        mass = math.fsum(option_probs)
        return cls(tuple(p / mass if mass else 0.0 for p in option_probs), min(mass, 1.0), usage)

    @property
    def answered(self) -> bool:
        """Whether any option was chosen."""
        return any(self.probabilities)

    @property
    def known_mass(self) -> float | None:
        """The mass, or None if the engine does not know it."""
        return None if math.isnan(self.mass) else self.mass


class Token(NamedTuple):
    """One token of a scored text: characters `start:end`, log-probability, raw logit if known.

    The log-probability is nan if the engine returns raw logits only.
    """

    start: int
    end: int
    logprob: float
    logit: float | None = None


@dataclass(frozen=True)
class Scored:
    """A scored text; its tokens cover each character once, in order."""

    tokens: tuple[Token, ...]
    usage: Usage = Usage()


def finish_reason(reason: str | None, generated: int, max_tokens: int) -> Finish:
    """Why a reply ended.

    Args:
        reason: the engine's own `finish_reason`, which does not tell "context" from "length".
        generated: tokens of the reply.
        max_tokens: tokens that were asked for.
    """
    if reason != "length":
        return "stop"
    return "context" if generated < max_tokens else "length"


Request = Generate | Choose | Score
Reply = Generated | Chosen | Scored


class EngineError(Exception):
    """This request failed; others may succeed. `kind` is stored in the row's error."""

    kind = "engine"


class Unsupported(EngineError):
    """The engine can't answer this request, however often it is sent."""


class PromptTooLong(EngineError):
    """The prompt leaves no room for a reply in the model's context."""

    kind = "prompt_too_long"

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt has {tokens} tokens and the model's context is {limit}")
        self.tokens = tokens
        self.limit = limit


class EngineDead(EngineError):
    """The engine can't answer any more requests; the run stops and can be resumed."""

    kind = "engine_dead"


class Engine(Protocol):
    """Answers requests, many concurrently; each may raise `EngineError`."""

    identity: str
    """All that determines replies: model, revision or content hash, dtype. Part of the cache key."""
    context_length: int | None
    """Tokens of prompt and reply together; None if unknown."""
    concurrency: int
    """Number of requests in flight that keeps the engine busy."""
    kv_tokens: int | None
    """Size of the KV cache, prefix cache included, in tokens; None if unknown."""

    async def generate(self, request: Generate) -> Generated: ...
    async def choose(self, request: Choose) -> Chosen: ...
    async def score(self, request: Score) -> Scored: ...
    async def close(self) -> None: ...
