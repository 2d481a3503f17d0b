"""KV cache of a batch of sequences, padded on the left; rows and tokens are added and dropped in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64
"""Tokens by which full buffers grow."""


class BufferedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of a layer, as windows of buffers (rows, heads, tokens, head size) with room for more.

    `DynamicLayer` copies all of them at each step. What is outside of a row's own tokens is finite, so that
    a mask excludes it.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, tokens: int, like: Tensor) -> None:
        """Zeros with the heads, sizes and type of `like`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(like, like)
        shape = (rows, like.shape[1], tokens + ROOM, like.shape[-1])
        self._buffers = like.new_zeros(shape), like.new_zeros(shape)
        self._set_window(rows, 0, tokens)

    def _set_window(self, rows: int, start: int, end: int) -> None:
        self._rows, self._start, self._end = rows, start, end
        self.keys, self.values = (buffer[:rows, :, start:end] for buffer in self._buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds tokens to all rows."""
        more = key_states.shape[-2]
        if self._end + more > self._buffers[0].shape[-2]:
            self._grow(self._rows, self.keys.shape[-2], more + ROOM)
        end = self._end + more
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end : end] = states
        self._set_window(self._rows, self._start, end)
        return self.keys, self.values

    def _grow(self, rows: int, end: int, room: int = ROOM) -> None:
        """Moves to buffers for at least so many rows, the window's end at `end`, with room after it."""
        held = self.keys, self.values
        _, heads, tokens, size = held[0].shape
        shape = (max(rows, self._buffers[0].shape[0]), heads, end + room, size)
        self._buffers = held[0].new_zeros(shape), held[0].new_zeros(shape)
        for buffer, tensor in zip(self._buffers, held, strict=True):
            buffer[: self._rows, :, end - tokens : end] = tensor
        self._set_window(self._rows, end - tokens, end)

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last tokens of all rows; the number is negative, as in transformers."""
        self._set_window(self._rows, self._start, self._end - abs(tokens_to_remove))

    def move(self, rows: int, moves: Sequence[tuple[int, int]], padding: int) -> None:
        """Keeps the first rows, after copying others, each given as source and target, among them.

        Args:
            padding: number of columns to drop on the left.
        """
        for source, target in moves:
            self.keys[target], self.values[target] = self.keys[source], self.values[source]
        self._set_window(rows, self._start + padding, self._end)

    def fill(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Copies (heads, tokens, head size) tensors to the end of a row."""
        start = self.keys.shape[-2] - keys.shape[-2]
        self.keys[row, :, start:], self.values[row, :, start:] = keys, values

    def reserve(self, other: "BufferedLayer") -> None:
        """Makes room for the other's rows; without memory for it, the layer stays as it is."""
        rows, width = self._rows + other._rows, other.keys.shape[-2]
        if rows > self._buffers[0].shape[0] or width > self._end:
            self._grow(rows, max(width, self.keys.shape[-2]))

    def extend(self, other: "BufferedLayer") -> None:
        """Adds the other's rows, for which there is room."""
        first, width = self._rows, other.keys.shape[-2]
        self._set_window(first + other._rows, min(self._start, self._end - width), self._end)
        for row in range(other._rows):
            self.fill(first + row, other.keys[row], other.values[row])


@dataclass
class PaddedBatch:
    """Keys and values of sequences that are being continued."""

    layers: list[BufferedLayer]
    mask: Tensor
    """(rows, tokens): 1 at a row's own tokens, 0 at padding."""
    last_step: int = 0
    """Columns of the last step."""

    @classmethod
    def of(cls, caches: Sequence[Any], tokens: int, mask: Tensor) -> Self:
        """A batch that starts with copies of caches of one row, padded on the left to `tokens` tokens."""
        layers = []
        for rows in zip(*(cache.layers for cache in caches), strict=True):
            layer = BufferedLayer(len(rows), tokens, rows[0].keys)
            for place, row in enumerate(rows):
                layer.fill(place, row.keys[0], row.values[0])
            layers.append(layer)
        return cls(layers, mask)

    @property
    def cache(self) -> Cache:
        """transformers' view of it."""
        return Cache(layers=[*self.layers])

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drops all other rows; returns the kept ones in their new order."""
        count = len(rows)
        order = list(range(count))
        others = [row for row in rows if row >= count]
        holes = sorted(set(order) - set(rows))
        moves = list(zip(others, holes, strict=True))
        for source, target in moves:
            order[target] = source
        mask = self.mask[order]
        padding = int(mask.any(0).int().argmax())
        for layer in self.layers:
            layer.move(count, moves, padding)
        self.mask = mask[:, padding:]
        return order

    def extend(self, other: Self) -> None:
        """Adds the other's rows after these; without memory for it, the batch stays as it is."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)])
        pairs = list(zip(self.layers, other.layers, strict=True))
        for layer, more in pairs:
            layer.reserve(more)
        for layer, more in pairs:
            layer.extend(more)
        self.mask = mask

    def accept(self, counts: list[int]) -> None:
        """Keeps the first `counts[row]` tokens of the last step in each row and discards the others."""
        most = max(counts)
        for layer in self.layers:
            layer.crop(most - self.last_step)
        kept = self.mask.new_tensor([[1] * count + [0] * (most - count) for count in counts])
        self.mask = torch.cat([self.mask[:, : -self.last_step], kept], 1)
