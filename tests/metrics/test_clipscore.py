import clip
import numpy as np
import pytest
from PIL import Image as Pillow

from scalecap.engines.base import Image
from scalecap.metrics.clipscore import clipscore


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return clip.make(tmp_path_factory.mktemp("clip"))


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image(str(seed), Pillow.fromarray(pixels))


async def test_the_score_is_the_models_own(weights):
    import torch
    import transformers

    model = transformers.CLIPModel.from_pretrained(weights).eval()
    processor = transformers.CLIPProcessor.from_pretrained(weights, backend="pil")
    for seed in range(3):
        read = ["A photo depicts a cat", "A photo depicts dog"]
        inputs = processor(text=read, images=picture(seed).pixels, return_tensors="pt", padding=True)
        with torch.inference_mode():
            cosines = model(**inputs).logits_per_image[0] / model.logit_scale.exp()
        found = await clipscore({"a": "a cat", "b": ["dog"], "c": None}, picture(seed), weights=weights)
        assert found["a"]["score"] == pytest.approx(max(0, 2.5 * float(cosines[0])), abs=1e-5)
        assert found["b"]["score"] == pytest.approx(max(0, 2.5 * float(cosines[1])), abs=1e-5)
        assert list(found) == ["a", "b"]


async def test_captions_beyond_the_context_are_told(weights):
    found = await clipscore({"a": "a cat " * 20, "b": "cat"}, picture(0), weights=weights)
    assert (found["a"]["cut"], found["b"]["cut"]) == (1, 0)


async def test_no_model_is_an_error_with_its_name(tmp_path):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    with pytest.raises(ValueError, match=r"weights: can't load a CLIP model from .*nowhere"):
        await clipscore({"a": "b"}, picture(0), weights=str(tmp_path / "nowhere"))
