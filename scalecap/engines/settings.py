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
"""What `pip install "scalecap[...]"` brings each engine's libraries."""
ENGINES = ("auto", *EXTRAS)
_OWN_BODY = dict.fromkeys(
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
"""Keys of a request's body that have a setting of their own, or none."""
AFFECTS_COST = {"affects": "cost"}
"""Metadata of a setting that changes time, memory or how many rows are taken, and no row's content: a run is
resumed, and a reply comes from the cache, whatever its value."""
AFFECTS_NOTHING = {"affects": "nothing"}
"""Likewise, of one that comparisons have nothing to say about either. A setting without such a mark affects
rows, and replies where it is an engine's or a model's."""


@dataclass
class PriceSettings:
    """What an engine's tokens cost, per million of them, in any currency."""

    prompt: float | None = None
    generated: float | None = None
    cached: float | None = None
    """Of prompt tokens that the server had in its prefix cache; None is the price of the others."""

    @property
    def needed(self) -> tuple[float | None, float | None]:
        """Those without which nothing can be reckoned."""
        return self.prompt, self.generated


@dataclass
class EngineSettings:
    """What runs the models."""

    name: str = "auto"
    """`auto`, `transformers`, `vllm`, `openai`, or `package/name` for one of another package."""
    base_url: Any = field(default=None, metadata=AFFECTS_COST)
    """Address of an OpenAI-compatible server, up to and with `/v1`, or a list of those of servers that run
    the same model: all requests about a picture go to one of them, and to the next while it is away. Replies
    are kept apart by it: a name such as `default` may stand for other weights elsewhere."""
    identity: str | None = None
    """Which model the server runs, in your own words. Replies are then shared by all addresses with the same
    words, e.g. by several servers of one model (engine=openai)."""
    logprobs: bool | None = None
    """Whether the server tells log-probabilities, from which P(yes) is read; without them P(yes) is 0 or 1,
    by the reply's first word. None finds out when the engine is opened (engine=openai)."""
    concurrency: int | None = field(default=None, metadata=AFFECTS_COST)
    """Most requests in flight, at each of several servers; None is the engine's own choice."""
    batch_size: int = field(default=32, metadata=AFFECTS_COST)
    """Most requests in one forward pass (engine=transformers)."""
    timeout: float = field(default=600.0, metadata=AFFECTS_COST)
    """Seconds that one request may take, retries included, and that a server may be away (engine=openai)."""
    retries: int = field(default=6, metadata=AFFECTS_COST)
    """Further tries after 429, 5xx and lost connections, within `timeout` (engine=openai)."""
    keep: bool = field(default=False, metadata=AFFECTS_NOTHING)
    """Keeps the engines of other models open for later jobs of a sweep, where memory holds them all."""
    quiet: bool = field(default=True, metadata=AFFECTS_NOTHING)
    """Keeps the libraries' own logs off the screen."""
    args: dict[str, Any] = field(default_factory=dict, metadata={"harmless": HARMLESS_ARGS})
    """Passed to vLLM, or to another package's engine, as they are, e.g. `engine.args.tensor_parallel_size=2`.
    The memory that vLLM's `gpu_memory_utilization` allows is for all models of the run: their weights, and of
    the rest the same for each; a 32nd of the GPU's is for encoded pictures."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Merged into the body of each request (engine=openai): what a server knows beyond OpenAI's protocol,
    e.g. `engine.extra_body.provider.order=[a,b]`."""
    jpeg_quality: int | None = None
    """Sends pictures as JPEG of this quality, 1 to 100, in full colour (engine=openai): at 95 a quarter of
    the bytes of PNG, which is lossless and taken with None."""
    price: PriceSettings = field(default_factory=PriceSettings, metadata=AFFECTS_NOTHING)
    """For estimates and `max_cost`: `engine.price={prompt: 0.15, generated: 0.6}`."""

    @property
    def addresses(self) -> list[str]:
        """`base_url` as a list, each server once."""
        given = [self.base_url] if isinstance(self.base_url, str) else self.base_url or []
        return list(dict.fromkeys(given))


@dataclass
class ModelSettings:
    """The weights of one role."""

    name: str = MISSING
    """Hub name or local folder; `scenes` is the embedded model. With `engine=openai`, the name served."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the newest."""
    dtype: str = "auto"
    """`auto` is the dtype of the weights; else `float32`, `bfloat16` or `float16`. With `float64`, which
    the transformers engine alone has, no neighbour in a batch changes even the last digit of a reply."""
    trust_remote_code: bool = False
    """Lets the model's own Python files run on this machine."""
    max_context: int | None = None
    """Tokens of prompt and reply together; None is what the model was made for."""
    min_pixels: int | None = None
    """Smaller pictures are scaled up to this many pixels; None is the processor's own bound."""
    max_pixels: int | None = None
    """Larger pictures are scaled down to this many pixels: fewer is faster and sees less."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables of the model's chat template, e.g. `chat_template_kwargs.enable_thinking=false`, which turns
    a hybrid model's reasoning off. With `engine=openai` they are sent with each request, under this name."""
    engine: dict[str, Any] = field(default_factory=dict, metadata={"keys_of": EngineSettings})
    """An engine of the role's own: any key of `engine`, e.g. `model.judge.engine.base_url=…`. Those not given
    are as in `engine`; where `name` or `base_url` differs, what describes an engine (`args`, `identity`,
    `logprobs`, `extra_body` …) begins at its default."""


@dataclass
class ModelsSettings:
    """One model for each role a step may ask."""

    vlm: ModelSettings = field(default_factory=ModelSettings)
    """Sees the picture."""
    llm: ModelSettings = field(default_factory=lambda: ModelSettings(name="${model.vlm.name}"))
    """Reads text alone; the `vlm` itself, loaded once, unless something is set here."""
    judge: ModelSettings = field(default_factory=lambda: ModelSettings(name="${model.vlm.name}"))
    """Asked by `evaluate=`, with the picture or without; the `vlm` itself unless something is set here.
    Name one, and the same in every run that is compared: a model judges itself kindly."""


class RoleSettings(NamedTuple):
    """What answers a role."""

    model: ModelSettings
    engine: EngineSettings


def own_engine(shared: EngineSettings, given: Mapping[str, Any]) -> EngineSettings:
    """The engine of a role that gives these keys; see `ModelSettings.engine`."""
    place = ("name", "base_url")
    if any(given.get(key, getattr(shared, key)) != getattr(shared, key) for key in place):
        usage = {each.name for each in fields(shared) if "affects" in each.metadata} - {"base_url", "price"}
        shared = EngineSettings(**{key: getattr(shared, key) for key in ("name", *usage)})
    price = {"price": PriceSettings(**given["price"])} if "price" in given else {}
    return replace(shared, **{**given, **price})


def engine_problems(key: str, engine: EngineSettings) -> list[str]:
    """Values of an engine's settings that make no sense; `key` is where they stand."""
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
        f"{key}.extra_body.{each}: {_OWN_BODY[each]}" for each in engine.extra_body if each in _OWN_BODY
    ]
    return found
