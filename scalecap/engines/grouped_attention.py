"""Attention on the CPU without copies of keys and values.

Where several heads of a query share one head of keys and values (grouped-query attention), transformers'
`sdpa` repeats keys and values for each of them, at every layer and step. Here these heads are further queries
of the same head.
"""

from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "scalecap_grouped"


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """An attention function for transformers' `AttentionInterface`.

    Args:
        query: (rows, heads, new tokens, head size).
        key: (rows, key heads, tokens, head size), like `value`.
        attention_mask: broadcasts to (rows, 1, new tokens, tokens).

    Returns:
        (rows, new tokens, heads, head size), and no weights.
    """
    rows, heads, length, _ = query.shape
    groups = heads // key.shape[1]
    if attention_mask is None or groups == 1 or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    queries = query.reshape(rows, key.shape[1], groups * length, -1)
    mask = attention_mask.repeat(1, 1, groups, 1)
    out = scaled_dot_product_attention(queries, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def use_grouped_attention(model: Any) -> None:
    """Makes the language model use `grouped_attention` if it uses `sdpa`."""
    text = model.config.get_text_config()
    if text._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    key = next((key for key in model.config.sub_configs if getattr(model.config, key) is text), "")
    model.set_attn_implementation({key: NAME})
