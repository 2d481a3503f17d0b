"""A tiny untrained Qwen2.5-VL, and pictures to show it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Pillow

from scalecap.engines.base import Image
from scalecap.engines.children import mend

mend()  # before any test imports transformers, which remembers what it found


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model of the real architecture, float32."""
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    from scalecap.scenes.model import build

    return build(tmp_path_factory.mktemp("models") / "Any Name 7b")


@pytest.fixture(scope="session")
def picture() -> Callable[[int], Image]:
    """Pictures that differ in every pixel, by number."""

    def make(number: int) -> Image:
        gradient = Pillow.linear_gradient("L").rotate(37 * number).resize((120 + 10 * number, 90))
        pixels = Pillow.merge("RGB", [gradient, gradient.rotate(90), gradient.rotate(180)])
        return Image(f"picture-{number}", pixels)

    return make
