"""The embedded model: a small Qwen2.5-VL and its tokenizer.

Vision: 168 x 168 pixels, patches of 14 x 14, merged 2 x 2 into 36 tokens.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from scalecap.engines.compat import patch_libraries

SIDE = 168
PATCH = 14
MERGE = 2
GRID = SIDE // PATCH
IMAGE_TOKENS = (GRID // MERGE) ** 2

_SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(corpus: Iterable[str], size: int = 1536) -> Any:
    """Trains a byte-level BPE tokenizer with Qwen's special tokens."""
    patch_libraries()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

    tokenizer = Tokenizer(models.BPE())
    # Runs of letters, single digits and runs of punctuation, as in Qwen2's pre-tokenizer.
    pieces = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    fast = Qwen2TokenizerFast(
        vocab=learnt["vocab"],
        merges=[tuple(pair) for pair in learnt["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[
            token for token in _SPECIAL if token not in ("<|im_end|>", "<|endoftext|>")
        ],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT
    return fast


def make_model(tokenizer: Any, seed: int = 0, *, layers: int = 5) -> Any:
    """An untrained model of about 6 million parameters; `layers` is the depth of its language part."""
    patch_libraries()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL}
    size = (len(tokenizer) + 63) // 64 * 64
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size,
            "hidden_size": 256,
            "intermediate_size": 640,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_heads": 5,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 256,
            "window_size": 112,
            # With only 144 patches, every layer uses full attention.
            "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)  # type: ignore[no-untyped-call]
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def save(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes a folder that transformers and vLLM load like any Qwen2.5-VL."""
    import copy

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": SIDE * SIDE,
        "max_pixels": SIDE * SIDE,
        "merge_size": MERGE,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def patches(images: Tensor) -> Tensor:
    """Cuts images into patches like Qwen's processor.

    Args:
        images: (batch, 3, 168, 168), normalised.

    Returns:
        (batch, 144, 588): flattened patches, the four patches of a merged token adjacent.
    """
    batch = images.shape[0]
    cells = GRID // MERGE
    cut = images.reshape(batch, 3, cells, MERGE, PATCH, cells, MERGE, PATCH)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, GRID * GRID, 3 * PATCH * PATCH)


def normalise(images: list[Image.Image]) -> Tensor:
    """Resizes like the processor; (batch, 3, 168, 168) in [-1, 1]."""
    import numpy as np

    small = [
        p if p.size == (SIDE, SIDE) else p.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in images
    ]
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in small]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def see(visual: Any, images: Tensor) -> Tensor:
    """Runs the vision tower on a batch of images of equal size, for training.

    Weights and result are those of the model's own forward, which computes attention image by image on CPUs.

    Args:
        visual: the model's `visual` module.
        images: (batch, 3, 168, 168), normalised.

    Returns:
        (batch, 36, hidden of the language model).
    """
    batch = images.shape[0]
    # An image is both frames of a temporal patch, so the two kernels can be added.
    kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)
    hidden = torch.nn.functional.linear(patches(images), kernel)
    place = torch.arange(GRID, device=images.device)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    cells = GRID // MERGE
    order = torch.stack([rows, columns]).reshape(2, cells, MERGE, cells, MERGE).transpose(2, 3)
    angles = order.reshape(2, -1, 1).float() * visual.rotary_pos_emb.inv_freq.float()
    angles = torch.cat([angles[0], angles[1]], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()

    def turn(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        return (x * cos + rotated * sin).to(x.dtype)

    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(hidden)).reshape(batch, GRID * GRID, 3, attention.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        # Twice as fast on CPUs as fused attention, whose backward is slow there.
        scores = turn(query * query.shape[-1] ** -0.5) @ turn(key).transpose(-1, -2)
        mixed = scores.softmax(-1).to(value.dtype) @ value
        hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(batch, GRID * GRID, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = visual.merger(hidden).reshape(batch, IMAGE_TOKENS, -1)
    return merged
