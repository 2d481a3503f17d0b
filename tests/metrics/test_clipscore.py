import asyncio
import gc
import weakref

import clip
import numpy as np
import pytest
from PIL import Image as Pillow

from scalecap.engines.base import Image
from scalecap.metrics import clipscore
from scalecap.metrics.clipscore import Clipscore


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return clip.make(tmp_path_factory.mktemp("clip"))


def an_image(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image(str(seed), Pillow.fromarray(pixels))


async def test_the_score_is_the_models_own(weights):
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(weights).eval()
    processor = transformers.CLIPProcessor.from_pretrained(weights, backend="pil")
    for seed in range(3):
        read = ["A photo depicts a cat", "A photo depicts dog"]
        inputs = processor(text=read, images=an_image(seed).pixels, return_tensors="pt", padding=True)
        with torch.inference_mode():
            cosines = model(**inputs).logits_per_image[0] / model.logit_scale.exp()
        captions = {"a": "a cat", "b": ["dog"], "c": None}
        found = await Clipscore(weights=weights)(None, captions=captions, image=an_image(seed))
        assert found["a"]["score"] == pytest.approx(max(0, 2.5 * float(cosines[0])), abs=1e-5)
        assert found["b"]["score"] == pytest.approx(max(0, 2.5 * float(cosines[1])), abs=1e-5)
        assert list(found) == ["a", "b"]


async def test_captions_beyond_the_context_are_reported_as_cut(weights):
    captions = {"a": "a cat " * 20, "b": "cat"}
    found = await Clipscore(weights=weights)(None, captions=captions, image=an_image(0))
    assert (found["a"]["cut"], found["b"]["cut"]) == (1, 0)


async def test_no_model_is_an_error_with_its_name_for_every_row(tmp_path):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    stage = Clipscore(weights=str(tmp_path / "nowhere"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"weights: can't load a CLIP model from .*nowhere"):
            await stage(None, captions={"a": "b"}, image=an_image(0))


async def test_no_room_on_the_gpu_is_an_error_with_the_fix(weights, monkeypatch):
    def full(_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(clipscore, "import_module", full)
    with pytest.raises(ValueError, match=r"no room .* beside the engine.*gpu_memory_utilization"):
        await Clipscore(weights=weights)(None, captions={"a": "b"}, image=an_image(0))


async def test_it_is_loaded_with_the_first_row_and_freed_at_the_end(weights, monkeypatch):
    loaded = []
    load = clipscore._load
    monkeypatch.setattr(
        clipscore, "_load", lambda name: loaded.append(weakref.ref((kept := load(name))[0])) or kept
    )
    stage = Clipscore(weights=weights)
    assert not loaded
    first, second = await asyncio.gather(
        *(stage(None, captions={"a": "b"}, image=an_image(0)) for _ in range(2))
    )
    assert first == second
    assert len(loaded) == 1
    stage.close()
    while loaded[0]() is not None:
        await asyncio.sleep(0.01)
        gc.collect()
    assert await stage(None, captions={"a": "b"}, image=an_image(0)) == first
    assert len(loaded) == 2
