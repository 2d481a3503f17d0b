"""Settings of models and of the engines that run them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from omegaconf import MISSING

from scalecap import plugins
from scalecap.engines.identity import HARMLESS_ARGS
from scalecap.text.suggestions import did_you_mean

EXTRAS = {"transformers": "cpu", "vllm": "vllm", "openai": "openai"}
"""By engine, the extra that installs its libraries: `pip install "scalecap[...]"`."""
ENGINES = ("auto", *EXTRAS)
_RESERVED_KEYS = dict.fromkeys(
    ("messages", "logprobs", "top_logprobs", "prompt_logprobs", "n", "stream"), "set by scalecap itself"
) | {
    "model": "set model.vlm.name",
    "chat_template_kwargs": "set model.<role>.chat_template_kwargs",
    "max_tokens": "set sampling.max_tokens",
    "max_completion_tokens": "set sampling.max_tokens",
    "temperature": "set sampling.temperature",
    "top_p": "set sampling.top_p",
    "repetition_penalty": "set sampling.repetition_penalty",
    "seed": "set seed",
}
"""Keys that `engine.extra_body` must not contain, and what to do instead."""
AFFECTS_COST = {"affects": "cost"}
"""Metadata of a setting that changes time, memory or the number of rows, but not their content: it may differ
when a run is resumed, and it is not part of cache keys."""
AFFECTS_NOTHING = {"affects": "nothing"}
"""Metadata of a setting that comparisons ignore as well. A setting without such metadata affects rows; one of
an engine or a model also affects replies."""


@dataclass
class PriceSettings:
    """Price of a million tokens, in any currency."""

    prompt: float | None = None
    generated: float | None = None
    cached: float | None = None
    """Price of prompt tokens from the server's prefix cache; None: the same as of other prompt tokens."""

    @property
    def needed(self) -> tuple[float | None, float | None]:
        """The prices that an estimate of costs needs."""
        return self.prompt, self.generated


@dataclass
class EngineSettings:
    """The engine that runs the models."""

    name: str = "auto"
    """`auto`, `transformers`, `vllm`, `openai`, or `package/name` for one of another package."""
    base_url: Any = field(default=None, metadata=AFFECTS_COST)
    """Address of an OpenAI-compatible server, up to and including `/v1`, or a list of addresses of servers
    that run the same model: all requests about an image go to one of them, and to the next one while it is
    down. Replies are cached per address, since a name such as `default` may stand for other weights
    elsewhere."""
    identity: str | None = None
    """Your own name for the model that the server runs. Cached replies are then shared by all addresses with
    this name, e.g. by several servers of one model (engine=openai)."""
    logprobs: bool | None = None
    """Whether the server returns log-probabilities, from which P(yes) is computed; without them P(yes) is 0
    or 1, by the reply's first word. None finds out when the engine is opened (engine=openai)."""
    concurrency: int | None = field(default=None, metadata=AFFECTS_COST)
    """Maximum number of requests in flight, for each of several servers; None: the engine's default."""
    batch_size: int = field(default=32, metadata=AFFECTS_COST)
    """Maximum number of requests in one forward pass (engine=transformers)."""
    timeout: float = field(default=600.0, metadata=AFFECTS_COST)
    """Seconds that a request may take, retries included, and that a server may be down (engine=openai)."""
    retries: int = field(default=6, metadata=AFFECTS_COST)
    """Maximum number of retries after 429, 5xx and lost connections, within `timeout` (engine=openai)."""
    keep: bool = field(default=False, metadata=AFFECTS_NOTHING)
    """Keeps the engines of other models open for later jobs of a sweep, if memory allows."""
    quiet: bool = field(default=True, metadata=AFFECTS_NOTHING)
    """Keeps the libraries' own logs off the screen."""
    args: dict[str, Any] = field(default_factory=dict, metadata={"harmless": HARMLESS_ARGS})
    """Arguments of vLLM or of another package's engine, e.g. `engine.args.tensor_parallel_size=2`. With vLLM
    all models of the run share the memory that `gpu_memory_utilization` allows: each gets its weights and an
    equal part of the rest; 1/32 of the GPU's memory is for encoded images."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Merged into the body of each request (engine=openai), for a server's extensions of OpenAI's protocol,
    e.g. `engine.extra_body.provider.order=[a,b]`."""
    jpeg_quality: int | None = None
    """Sends images as JPEG of this quality, 1 to 100, without chroma subsampling (engine=openai): at 95 a
    quarter of the size of PNG. None sends PNG, which is lossless."""
    price: PriceSettings = field(default_factory=PriceSettings, metadata=AFFECTS_NOTHING)
    """For estimates and `max_cost`: `engine.price={prompt: 0.15, generated: 0.6}`."""

    @property
    def addresses(self) -> list[str]:
        """`base_url` as a list without duplicates."""
        given = [self.base_url] if isinstance(self.base_url, str) else self.base_url or []
        return list(dict.fromkeys(given))


@dataclass
class ModelSettings:
    """The model of one role."""

    name: str = MISSING
    """Hub name or local folder; `scenes` is the embedded model. With `engine=openai`, the served name."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None: the latest."""
    dtype: str = "auto"
    """`auto` (the dtype of the weights), `float32`, `bfloat16` or `float16`; with the transformers engine
    also `float64`, in which other requests of a batch don't change even the last digit of a reply."""
    trust_remote_code: bool = False
    """Allows the model's own Python files to run on this machine."""
    max_context: int | None = None
    """Limit on tokens of prompt and reply together; None: the model's own."""
    min_pixels: int | None = None
    """Smaller images are scaled up to this many pixels; None: the image processor's own limit."""
    max_pixels: int | None = None
    """Larger images are scaled down to this many pixels; fewer are faster, but lose detail."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the model's chat template, e.g. `chat_template_kwargs.enable_thinking=false`, which turns
    off the reasoning of a hybrid model. With `engine=openai` they are sent with each request, under this
    name."""
    engine: dict[str, Any] = field(default_factory=dict, metadata={"keys_of": EngineSettings})
    """Engine settings of this role: any key of `engine`, e.g. `model.judge.engine.base_url=…`; others are
    taken from `engine`. If `name` or `base_url` differs, settings that describe an engine (`args`,
    `identity`, `logprobs`, `extra_body` …) start from their defaults."""


@dataclass
class ModelsSettings:
    """One model for each role that a step can use."""

    vlm: ModelSettings = field(default_factory=ModelSettings)
    """Vision-language model: sees the image."""
    llm: ModelSettings = field(default_factory=lambda: ModelSettings(name="${model.vlm.name}"))
    """Language model for text-only steps; the `vlm` itself, loaded once, unless something is set here."""
    judge: ModelSettings = field(default_factory=lambda: ModelSettings(name="${model.vlm.name}"))
    """Used by `evaluate=`, with or without the image; the `vlm` itself unless something is set here. Set it,
    to the same model in all runs that are compared: a model rates its own captions too well."""


class RoleSettings(NamedTuple):
    """Model and engine of a role."""

    model: ModelSettings
    engine: EngineSettings


def own_engine(shared: EngineSettings, given: Mapping[str, Any]) -> EngineSettings:
    """The engine settings of a role that sets these keys; see `ModelSettings.engine`."""
    place = ("name", "base_url")
    if any(given.get(key, getattr(shared, key)) != getattr(shared, key) for key in place):
        usage = {each.name for each in fields(shared) if "affects" in each.metadata} - {"base_url", "price"}
        shared = EngineSettings(**{key: getattr(shared, key) for key in ("name", *usage)})
    price = {"price": PriceSettings(**given["price"])} if "price" in given else {}
    return replace(shared, **{**given, **price})


def engine_problems(key: str, engine: EngineSettings) -> list[str]:
    """Invalid values in an engine's settings, one line each; `key` is their place in the config."""
    at_least = {"concurrency": 1, "batch_size": 1, "retries": 0}
    found = [
        f"{key}.{name}={value}: must be {least} or more"
        for name, least in at_least.items()
        if (value := getattr(engine, name)) is not None and value < least
    ]
    found += [
        f"{key}.price.{name}={value}: must be 0 or more"
        for name, value in vars(engine.price).items()
        if value is not None and value < 0
    ]
    if engine.jpeg_quality is not None and not 1 <= engine.jpeg_quality <= 100:
        found.append(f"{key}.jpeg_quality={engine.jpeg_quality}: must be 1 to 100")
    if engine.timeout <= 0:
        found.append(f"{key}.timeout={engine.timeout}: must be above 0")
    if engine.name not in ENGINES and engine.name not in (others := plugins.names("engines")):
        meant = did_you_mean(engine.name, [*ENGINES, *others])
        found.append(f"{key}.name={engine.name}: no such engine{meant}")
    given = engine.base_url if isinstance(engine.base_url, list) else [engine.base_url or ""]
    if engine.name == "openai" and given in ([], [""]):
        found.append(f"{key}.name=openai needs {key}.base_url=http://HOST:PORT/v1")
    elif engine.base_url and not all(re.match(r"https?://[^/]", str(each)) for each in given):
        found.append(f"{key}.base_url: expected http://HOST:PORT/v1, or a list of such addresses")
    found += [
        f"{key}.extra_body.{each}: {_RESERVED_KEYS[each]}"
        for each in engine.extra_body
        if each in _RESERVED_KEYS
    ]
    return found
