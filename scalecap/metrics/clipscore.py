"""CLIPScore: how near a caption is to its picture in the space of a CLIP model."""

import asyncio
import threading
from functools import cache
from importlib import import_module
from typing import Any

from scalecap.metrics import texts
from scalecap.stages import Columns, Image, Measures, stage

_one_at_a_time = threading.Lock()


@stage
async def clipscore(captions: Columns, image: Image, *, weights: str, words: int | None = None) -> Measures:
    """2.5 · max(cos, 0) between picture and caption (Hessel et al. 2021, arXiv 2104.08718).

    As there, a caption is read after the words "A photo depicts". CLIP reads 77 tokens or as many as the
    model was made for; the share of captions that are longer, and so not read to their end, is `cut`.

    Args:
        weights: a hub name or local folder of a CLIP model; runs on a GPU if there is one.
    """
    told = dict(texts(captions, words))
    read = [f"A photo depicts {caption}" for caption in told.values()]
    scores = await asyncio.to_thread(_score, weights, image, read) if read else []
    return {name: {"score": score, "cut": int(cut)} for name, (score, cut) in zip(told, scores, strict=True)}


def _score(weights: str, image: Image, captions: list[str]) -> list[tuple[float, bool]]:
    import torch

    with _one_at_a_time, torch.inference_mode():
        loaded = _clip(weights)
        if isinstance(loaded, ValueError):
            raise loaded
        model, processor = loaded
        most = model.config.text_config.max_position_embeddings
        lengths = [len(ids) for ids in processor.tokenizer(captions)["input_ids"]]
        inputs = processor(
            text=captions,
            images=image.pixels,
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=most,
        ).to(model.device)
        found = model(**inputs)
        cosines = torch.nn.functional.cosine_similarity(found.text_embeds, found.image_embeds)
    return [(2.5 * max(float(each), 0.0), n > most) for each, n in zip(cosines, lengths, strict=True)]


@cache
def _clip(weights: str) -> Any:
    """Model and processor; why they can't be had, so that not every row tries again."""
    from scalecap.engines.children import mend

    try:
        mend()
        transformers: Any = import_module("transformers")
        import torch

        model = transformers.CLIPModel.from_pretrained(weights).eval()
        processor = transformers.CLIPProcessor.from_pretrained(weights, backend="pil")
    except ImportError as error:
        return ValueError(f'needs the module {error.name}: pip install "scalecap[cpu]"')
    except (OSError, ValueError) as error:
        return ValueError(f"weights: can't load a CLIP model from {weights}: {error}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor
