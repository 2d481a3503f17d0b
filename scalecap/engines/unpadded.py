"""Forward passes for models that padding would change: one sequence at a time.

A Gated DeltaNet or Mamba layer carries a state from token to token, also through padding; a sliding window
counts padding as tokens.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from scalecap.engines.model_runner import ModelRunner, Prefix


@dataclass
class UnpaddedBatch:
    """A KV cache per row; the methods are those of `PaddedBatch`."""

    caches: list[Any]

    def keep(self, rows: Sequence[int]) -> list[int]:
        self.caches = [self.caches[row] for row in rows]
        return list(rows)

    def extend(self, other: "UnpaddedBatch") -> None:
        self.caches += other.caches

    def accept(self, counts: list[int]) -> None:
        """Does nothing: steps have one token a row, as a recurrent state can't be rolled back."""


class UnpaddedModelRunner(ModelRunner):
    """A `ModelRunner` whose forward passes have one row each."""

    supports_drafts = False

    def prefill(
        self, rows: Sequence[tuple[Prefix, list[int]]], keep: int = 1
    ) -> tuple[Tensor, UnpaddedBatch]:
        """As `ModelRunner.prefill`; the logits before the first token of a shorter row are zeros."""
        caches = [deepcopy(prefix.cache) for prefix, _ in rows]
        logits = []
        for (prefix, ids), cache in zip(rows, caches, strict=True):
            positions = list(range(prefix.next_position, prefix.next_position + len(ids)))
            out = self._forward(self._tensor([ids]), keep, cache, position_ids=self._tensor([positions]))
            logits.append(pad(out, (0, 0, keep - out.shape[1], 0)))
        return torch.cat(logits), UnpaddedBatch(caches)

    def step(self, batch: UnpaddedBatch, tokens: Sequence[list[int]], positions: Sequence[int]) -> Tensor:
        """Computes one more token in every row of the batch; returns logits (rows, 1, vocabulary)."""
        logits = [
            self._forward(self._tensor([[token]]), 1, cache, position_ids=self._tensor([[position]]))
            for (token,), position, cache in zip(tokens, positions, batch.caches, strict=True)
        ]
        return torch.cat(logits)


def model_runner_for(model: Any, image_processor: Any, context_length: int) -> ModelRunner:
    """The `ModelRunner` that suits the model's layers; arguments as of `ModelRunner`."""
    layers = DynamicCache(config=model.config).layers
    padded = all(type(layer) is DynamicLayer for layer in layers)
    return (ModelRunner if padded else UnpaddedModelRunner)(model, image_processor, context_length)
