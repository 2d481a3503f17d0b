"""Forward passes of models that padding would change, row by row.

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
class SeparateRows:
    """A cache for each row."""

    caches: list[Any]

    def only(self, kept: list[int]) -> "SeparateRows":
        """The rows at these places."""
        return SeparateRows([self.caches[place] for place in kept])

    def join(self, other: "SeparateRows") -> "SeparateRows":
        """These rows and then the other's."""
        return SeparateRows(self.caches + other.caches)

    def keep(self, counts: list[int]) -> None:
        """A state can't forget: each step has one token a row."""


class UnpaddedModelRunner(ModelRunner):
    """A `ModelRunner` whose forward passes have one row each."""

    def __init__(self, model: Any, eyes: Any, context: int) -> None:
        super().__init__(model, eyes, context)
        self.drafts = False

    def prefill(self, rows: Sequence[tuple[Prefix, list[int]]], keep: int = 1) -> tuple[Tensor, SeparateRows]:
        """Read what follows the prefixes.

        Returns:
            Logits at the last `keep` tokens of every row, (rows, keep, vocabulary), zeros before the first
            token of a shorter row; and the rows.
        """
        caches = [deepcopy(prefix.cache) for prefix, _ in rows]
        logits = []
        for (prefix, ids), cache in zip(rows, caches, strict=True):
            positions = list(range(prefix.next, prefix.next + len(ids)))
            told = self._forward(self._tensor([ids]), keep, cache, position_ids=self._tensor([positions]))
            logits.append(pad(told, (0, 0, keep - told.shape[1], 0)))
        return torch.cat(logits), SeparateRows(caches)

    def step(self, rows: SeparateRows, tokens: Sequence[list[int]], positions: Sequence[int]) -> Tensor:
        """Read one more token in every row of a `prefill`; returns logits (rows, 1, vocabulary)."""
        logits = [
            self._forward(self._tensor([[token]]), 1, cache, position_ids=self._tensor([[position]]))
            for (token,), position, cache in zip(tokens, positions, rows.caches, strict=True)
        ]
        return torch.cat(logits)

    def _empty(self) -> Any:
        return DynamicCache(config=self._model.config)


def model_runner_for(model: Any, images: Any, context: int) -> ModelRunner:
    """The `ModelRunner` that suits the model's layers; arguments as it takes them."""
    layers = DynamicCache(config=model.config).layers
    padded = all(type(layer) is DynamicLayer for layer in layers)
    return (ModelRunner if padded else UnpaddedModelRunner)(model, images, context)
