"""Images encoded for a server."""

import base64
import io

import pytest
from PIL import Image as Pillow
from PIL.ImageFilter import GaussianBlur
from server import Server, connect

from scalecap.engines.base import Generate, Image, Prompt

pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')

from scalecap.engines.encoded_images import ImageEncoder


async def test_the_cache_is_limited_by_size(fake: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []

    def encode(image: Image, *_: int | None) -> bytes:
        encoded.append(image.hash)
        return b"x" * (1000 if image.hash == "large" else 100)

    monkeypatch.setattr("scalecap.engines.encoded_images.data_url", encode)
    monkeypatch.setattr("scalecap.engines.encoded_images._CACHE_BYTES", 300)
    engine = await connect(fake)

    async def show(*names: str) -> list[str]:
        encoded.clear()
        for name in names:
            image = Image(name, Pillow.new("RGB", (1, 1)))
            await engine.generate(Generate(Prompt("?", image)))
        return encoded

    assert await show("a", "b", "c", "a", "b", "c") == ["a", "b", "c"]
    assert await show("d", "a") == ["d", "a"]  # "a" was the oldest
    assert await show("large", "large", "a") == ["large", "a"]  # what is in use is kept, however large


async def test_images_are_sent_losslessly_and_small() -> None:
    channels = [Pillow.effect_noise((200, 150), 90).filter(GaussianBlur(2)) for _ in range(3)]
    pixels = Pillow.merge("RGB", channels)
    sent = await ImageEncoder(None, None).encode(Image("h", pixels))
    kind, _, encoded = sent.partition(b",")
    assert kind == b"data:image/png;base64"
    file = base64.b64decode(encoded)
    assert Pillow.open(io.BytesIO(file)).tobytes() == pixels.tobytes()
    slow = io.BytesIO()
    pixels.save(slow, "PNG", compress_level=6)
    assert len(file) < len(slow.getvalue())
    lossy = await ImageEncoder(None, 95).encode(Image("h", pixels))
    kind, _, encoded = lossy.partition(b",")
    assert kind == b"data:image/jpeg;base64"
    assert Pillow.open(io.BytesIO(base64.b64decode(encoded))).size == pixels.size
    assert len(lossy) < len(sent) / 2
