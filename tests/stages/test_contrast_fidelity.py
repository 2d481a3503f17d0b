"""Gaps against a plain reference: two forward passes with transformers, no batch, no cache."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

from scalecap.data.images import open_image
from scalecap.engines import embedded_model, open_engine
from scalecap.engines.base import Sampling
from scalecap.engines.compat import patch_libraries
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.interpreter.dispatch import Dispatcher, RunUsage
from scalecap.scenes.world import SAMPLE
from scalecap.stages.contrast import Contrast
from scalecap.text.templates import Template

patch_libraries()  # before any test imports transformers, which looks for libraries only once

PROMPT = "Describe the picture."
CAPTIONS = {
    "00.jpg": "The scene is on grass. There is a large cat at the top left, two small dogs, and a tree.",
    "03.jpg": "The picture shows two crabs at the top. I can see a cake, a large tractor at the bottom",
    "07.jpg": "A pole of 3.5 metres, 一只狗在草地上，and 🐈 café.\n- **a bell**, red.\n1. A hat, it is.",
}
# The content words of CAPTIONS, by hand.
CONTENT = [
    *("scene", "grass", "large", "cat", "top", "left", "two", "small", "dogs", "tree", "picture", "shows"),
    *("crabs", "see", "cake", "tractor", "bottom", "pole", "3.5", "metres", "一只狗在草地上", "café", "bell"),
    *("red", "1", "hat"),
]


def reference(model: Any, tokenizer: Any, image_processor: Any, image: Any, caption: str) -> list[float]:
    """Raw logit of each of the caption's tokens as the reply, in one forward pass of one row."""
    import torch

    begin, end = "<|im_start|>", "<|im_end|>"
    system = f"{begin}system\nYou are a helpful assistant.{end}\n"
    inputs: dict[str, Any] = {}
    seen = ""
    if image is not None:
        encoded = image_processor(images=image, return_tensors="pt")
        inputs = {
            "pixel_values": encoded["pixel_values"].double(),
            "image_grid_thw": encoded["image_grid_thw"],
        }
        pads = int(encoded["image_grid_thw"].prod()) // image_processor.merge_size**2
        seen = "<|vision_start|>" + "<|image_pad|>" * pads + "<|vision_end|>"
    prompt = f"{system}{begin}user\n{seen}{PROMPT}{end}\n{begin}assistant\n"
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply_ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt_ids + reply_ids])
    if image is not None:
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits[0]
    return [float(logits[len(prompt_ids) - 1 + place, token]) for place, token in enumerate(reply_ids)]


def clauses(caption: str) -> list[tuple[int, int]]:
    """Clauses of CAPTIONS end at a comma, a full stop or a line's end, not in "3.5" or "1."."""
    ends = [found.end() for found in re.finditer(r"(?<!\n1)[,.](?=\s|$)|，", caption)]
    ends = [*ends, *([len(caption)] if not ends or ends[-1] < len(caption) else [])]
    return list(zip([0, *ends], ends, strict=False))


async def test_gaps_and_clauses_are_those_of_two_plain_forward_passes() -> None:
    import torch
    import transformers

    folder = embedded_model()
    model: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    engine = await open_engine(ModelSettings(name="scenes"), EngineSettings(name="transformers"))
    client = Dispatcher({"vlm": engine}, None, Sampling(), 0, RunUsage(), 0.0).client(
        "step", lambda mark: None
    )
    try:
        for name, caption in CAPTIONS.items():
            image = open_image(Path(SAMPLE / name))
            kept, scores = await Contrast(prompt=Template(PROMPT))(client, texts=caption, image=image)
            with_it, without = (
                reference(model, tokenizer, image_processor, pixels, caption)
                for pixels in (image.pixels, None)
            )
            encoded = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True)
            plain: list[tuple[int, int, float]] = []
            for (start, end), a, b in zip(encoded["offset_mapping"], with_it, without, strict=True):
                if plain and start < plain[-1][1]:  # tokens that share a character are merged
                    first, last, gap = plain.pop()
                    plain.append((first, max(last, end), gap + a - b))
                else:
                    plain.append((start, end, a - b))
            found = [token["gap"] for score in scores for token in score["tokens"]]
            assert found == pytest.approx([gap for *_, gap in plain], abs=1e-3)

            rated = [
                found.span() for word in CONTENT for found in re.finditer(rf"\b{re.escape(word)}\b", caption)
            ]
            expected = []
            for first, last in clauses(caption):
                inside = [(a, b) for a, b in rated if first <= a and b <= last]
                gaps = [gap for s, e, gap in plain if any(min(e, b) > max(s, a) for a, b in inside)]
                expected.append((caption[first:last], max(gaps, default=None)))
            reported = [clause for score in scores for clause in score["clauses"]]
            assert [clause["text"] for clause in reported] == [text for text, _ in expected]
            for clause, (_, gap) in zip(reported, expected, strict=True):
                assert clause["gap"] == (None if gap is None else pytest.approx(gap, abs=1e-3))
                if gap is not None:
                    assert clause["kept"] == (gap > 0)
            assert kept == [score["remains"] for score in scores if score["kept"]]
    finally:
        await engine.close()
