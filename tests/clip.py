"""A CLIP model of a few thousand random weights, with a tokenizer of letters."""

import json
from pathlib import Path

import pytest

from scalecap.engines.compat import patch_libraries


def make(folder: Path) -> str:
    """Write the model into `folder`, and skip the test where torch or transformers is missing."""
    torch = pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    patch_libraries()
    transformers = pytest.importorskip("transformers", reason='needs pip install "scalecap[cpu]"')
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{each}</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({each: at for at, each in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **small,
            "vocab_size": len(vocabulary),
            "max_position_embeddings": 32,
            "bos_token_id": 52,
            "eos_token_id": 53,
            "pad_token_id": 53,
        },
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": size,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)
