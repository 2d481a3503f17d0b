"""CLIPScore: similarity of a caption and its image in the space of a CLIP model."""

import asyncio
from importlib import import_module
from typing import Any, ClassVar

from scalecap.metrics import texts
from scalecap.stages import Columns, Image, Measures, ModelClient, stage
from scalecap.threads import DaemonPool


@stage(requires={"torch": "scalecap[cpu]", "transformers": "scalecap[cpu]"}, better={"cut": "lower"})
class Clipscore:
    """2.5 · max(cos, 0) between image and caption (Hessel et al. 2021, arXiv 2104.08718).

    As there, a caption is read after the words "A photo depicts". CLIP reads 77 tokens or as many as the
    model was made for; the share of captions that are longer, and so not read to their end, is `cut`.

    The model is loaded with the first row, beside the engine's, on a GPU if there is one, and freed when
    the run ends. Rows are scored one at a time: in a batch, a score's last digits would depend on which
    rows are beside it.

    Args:
        weights: a hub name or local folder of a CLIP model.
    """

    role: ClassVar[None] = None

    def __init__(self, *, weights: str, words: int | None = None) -> None:
        self.weights, self.words = weights, words
        self._thread: DaemonPool | None = None
        self._loaded: tuple[Any, Any] | ValueError | None = None
        """Model and processor, or why they can't be loaded, so that not every row tries again."""

    def missing(self) -> str | None:
        """Why the weights are not available; None if they are."""
        from scalecap.engines.settings import ModelSettings
        from scalecap.engines.weights import ModelError, preflight

        try:
            preflight(ModelSettings(name=self.weights))
        except ModelError as error:
            return f"weights: {error}"
        return None

    async def __call__(self, client: ModelClient, *, captions: Columns, image: Image) -> Measures:
        captions_read = dict(texts(captions, self.words))
        if not captions_read:
            return {}
        self._thread = self._thread or DaemonPool(1, "clip")
        read = [f"A photo depicts {caption}" for caption in captions_read.values()]
        loop = asyncio.get_running_loop()
        scores = await loop.run_in_executor(self._thread, self._score, image, read)
        named = zip(captions_read, scores, strict=True)
        return {name: {"score": 2.5 * max(cosine, 0.0), "cut": int(cut)} for name, (cosine, cut) in named}

    def _score(self, image: Image, read: list[str]) -> list[tuple[float, bool]]:
        """For each text its cosine similarity with the image, and whether it was truncated.

        Raises:
            ValueError: the model can't be loaded; the message says why.
        """
        import torch

        if self._loaded is None:
            self._loaded = _load(self.weights)
        if isinstance(self._loaded, ValueError):
            raise self._loaded
        model, processor = self._loaded
        most = model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in processor.tokenizer(read)["input_ids"]]
        settings = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": most}
        inputs = processor(text=read, images=image.pixels, **settings).to(model.device)
        with torch.inference_mode():
            found = model(**inputs)
        cosines = torch.nn.functional.cosine_similarity(found.text_embeds, found.image_embeds)
        return [(float(cosine), length > most) for cosine, length in zip(cosines, lengths, strict=True)]

    def close(self) -> None:
        """Free the model's memory; a later score loads it again."""
        if self._thread:
            self._thread.submit(self._free)
            self._thread.shutdown()
            self._thread = None

    def _free(self) -> None:
        import torch

        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _load(weights: str) -> tuple[Any, Any] | ValueError:
    """Model and processor, or why they can't be loaded."""
    from scalecap.engines.compat import patch_libraries
    from scalecap.engines.weights import out_of_memory

    try:
        patch_libraries()
        transformers: Any = import_module("transformers")
        import torch

        model = transformers.CLIPModel.from_pretrained(weights).eval()
        processor = transformers.CLIPProcessor.from_pretrained(weights, backend="pil")
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor
    except (OSError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            return ValueError(
                f"weights: no room for {weights} on the GPU beside the engine, which takes less with"
                " engine.args.gpu_memory_utilization=0.85"
            )
        return ValueError(f"weights: can't load a CLIP model from {weights}: {error}")
