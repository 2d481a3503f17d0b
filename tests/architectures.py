"""Tiny random checkpoints, one of each vision-language architecture, and transformers' own forward pass."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from scalecap.engines.base import Prompt
from scalecap.engines.compat import patch_libraries
from scalecap.scenes.architecture import make_tokenizer

_WORDS = ["Is it true? There is a cat on the left. Answer yes or no.", "yes no Yes No YES NO"] * 20
Forward = Callable[..., tuple[list[int], Any]]
_PIXELS = 128 * 128
"""Larger images are scaled down to this many pixels."""


def build(architecture: str, folder: Path) -> Path:
    """Writes a random float32 checkpoint of a few layers; `architecture` is one of ARCHITECTURES."""
    patch_libraries()
    import transformers

    tokenizer = make_tokenizer(_WORDS, size=512)
    torch.manual_seed(0)
    model, processor = ARCHITECTURES[architecture](transformers, tokenizer)
    # Never the likeliest: for a generated `<|image_pad|>` transformers' forward would expect an image.
    model.get_input_embeddings().weight.data[tokenizer.all_special_ids] = 0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def forward_pass(folder: Path) -> Forward:
    """Token ids and logits of a prompt and reply, by transformers' own processor and unpadded forward."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    images: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    @torch.no_grad()
    def forward(prompt: Prompt, reply: Sequence[int] = ()) -> tuple[list[int], Any]:
        content = [{"type": "image"}] * bool(prompt.image) + [{"type": "text", "text": prompt.text}]
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = dict(images(images=prompt.image.pixels, return_tensors="pt")) if prompt.image else {}
        if prompt.image:
            text = text.replace(
                "<|image_pad|>", "<|image_pad|>" * (int(inputs["image_grid_thw"].prod()) // 4)
            )
        ids = torch.tensor([[*tokenizer(text).input_ids, *reply]])
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
        return ids[0].tolist(), model(input_ids=ids, use_cache=False, **inputs).logits[0]

    return forward


def text_model(model: Path, folder: Path, **more: Any) -> str:
    """Writes a random model without images that has the tokenizer of `model`; returns its folder."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=320, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, eos_token_id=299, **more,
    )  # fmt: skip
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model / file, folder)
    return str(folder)


def old_rope(model: Path, folder: Path) -> Path:
    """Writes the model with its rope settings in the old format."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _text(tokenizer: Any, mrope: list[int], **more: Any) -> dict[str, Any]:
    """The language model's part of a configuration; `mrope` sums to half of a head's rotated dimensions."""
    return {
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": mrope},
        "initializer_range": 0.2,  # far enough from uniform that images and texts change replies
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    } | more


def _tokens(tokenizer: Any) -> dict[str, Any]:
    """The control tokens in a configuration of the Qwen-VL families."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return ids | {"tie_word_embeddings": True}


def _processor(kind: Any, video: Any, tokenizer: Any, patch: int, **more: Any) -> Any:
    import transformers

    size = {"shortest_edge": 4 * patch * patch, "longest_edge": _PIXELS}
    images = transformers.Qwen2VLImageProcessor(
        size=size, patch_size=patch, temporal_patch_size=2, merge_size=2, **more
    )
    return kind(images, tokenizer, video(patch_size=patch), chat_template=tokenizer.chat_template)


def _qwen2_vl(hf: Any, tokenizer: Any) -> tuple[Any, Any]:
    config = hf.Qwen2VLConfig(
        text_config=_text(tokenizer, [4, 6, 6]),
        vision_config={"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 4, "patch_size": 14},
        **_tokens(tokenizer),
    )
    processor = _processor(hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor, tokenizer, 14)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl(hf: Any, tokenizer: Any) -> tuple[Any, Any]:
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 14,
        "out_hidden_size": 128, "window_size": 56, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        text_config=_text(tokenizer, [4, 6, 6]), vision_config=vision, **_tokens(tokenizer)
    )
    processor = _processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor, tokenizer, 14)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


_QWEN3_VISION = {
    "depth": 3, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "patch_size": 16,
    "out_hidden_size": 128, "num_position_embeddings": 64,
}  # fmt: skip
_QWEN3_PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _qwen3_vl(hf: Any, tokenizer: Any) -> tuple[Any, Any]:
    config = hf.Qwen3VLConfig(
        text_config=_text(tokenizer, [8, 4, 4], head_dim=32),
        vision_config=_QWEN3_VISION | {"deepstack_visual_indexes": [0, 1]},
        **_tokens(tokenizer),
    )
    processor = _processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, tokenizer, 16, **_QWEN3_PIXELS)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _qwen3_5(hf: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Three layers of Gated DeltaNet, then one of attention with a quarter of each head rotated."""
    text = _text(
        tokenizer, [2, 1, 1], head_dim=32, linear_key_head_dim=32, linear_value_head_dim=32,
        linear_num_key_heads=2, linear_num_value_heads=4,
    )  # fmt: skip
    text["rope_parameters"] |= {"mrope_interleaved": True, "partial_rotary_factor": 0.25}
    config = hf.Qwen3_5Config(text_config=text, vision_config=_QWEN3_VISION, **_tokens(tokenizer))
    processor = _processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, tokenizer, 16, **_QWEN3_PIXELS)
    return hf.Qwen3_5ForConditionalGeneration(config), processor


ARCHITECTURES: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "Qwen2-VL": _qwen2_vl,
    "Qwen2.5-VL": _qwen2_5_vl,
    "Qwen3-VL": _qwen3_vl,
    "Qwen3.5": _qwen3_5,
}
