"""An engine: the nearest colour that it knows, by the mean of the image's pixels."""

from collections.abc import Sequence

import numpy as np

from scalecap.engines.base import (
    Choose,
    Chosen,
    EngineError,
    Generate,
    Generated,
    Prompt,
    Score,
    Scored,
    Usage,
)
from scalecap.engines.identity import identity
from scalecap.engines.settings import EngineSettings, ModelSettings
from swatches import COLOURS


async def open_palette(
    model: ModelSettings, engine: EngineSettings, beside: Sequence[ModelSettings] = ()
) -> "Palette":
    """The engine `swatches/palette`; `engine.args.shout=true` answers in capitals."""
    return Palette(identity("swatches/palette", model.name, model, engine), bool(engine.args.get("shout")))


class Palette:
    """Names colours; a check is answered by whether the statement names the image's."""

    context_length = None
    concurrency = 8
    kv_tokens = None

    def __init__(self, identity: str, shout: bool) -> None:
        self.identity = identity
        self._shout = shout

    async def generate(self, request: Generate) -> Generated:
        text = f"The picture is {self._colour(request.prompt)}. It is plain."
        return Generated(text.upper() if self._shout else text, "stop", Usage(1, None, 8))

    async def choose(self, request: Choose) -> Chosen:
        holds = float(self._colour(request.prompt) in request.prompt.text.lower())
        rest = (1 - holds) / (len(request.options) - 1)
        return Chosen((holds, *(rest for _ in request.options[1:])), usage=Usage(1, None, 1))

    async def score(self, request: Score) -> Scored:
        raise EngineError("swatches/palette has no probabilities of texts")

    async def close(self) -> None:
        """Nothing to free."""

    @staticmethod
    def _colour(prompt: Prompt) -> str:
        if prompt.image is None:
            raise EngineError("swatches/palette answers about images alone")
        mean = np.asarray(prompt.image.pixels).reshape(-1, 3).mean(0)
        return min(COLOURS, key=lambda colour: float(np.abs(mean - COLOURS[colour]).sum()))
