"""Forward passes of a transformers model over padded batches, with what requests share kept.

Every row starts with a prefix (system turn and picture) whose keys and values are computed once
and reused by all requests about that picture. Rows are padded on the left; masks and explicit
positions make a row's result independent of its neighbours: up to floating point rounding, and in float64
to the last digit that is told.
"""

import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn.functional import pad, rms_norm
from transformers import DynamicCache

from scalecap.engines.base import EngineError, Image, PromptTooLong, Sampling

_KEPT = 32_768
"""Tokens of prefixes kept: about 2 GB with a 7B model, 25 pictures of a megapixel."""


@dataclass(frozen=True)
class Prefix:
    """What all requests about one picture share, computed."""

    ids: list[int]
    """Token ids; each token of the picture has one."""
    cache: Any
    """transformers' cache of one row; rows that go on from it copy it."""
    next: int
    """Position of the token that follows (pictures take fewer positions than tokens)."""


class Rows(Protocol):
    """What was read of the rows that are being continued."""

    def only(self, kept: list[int]) -> Self:
        """The rows at these places."""
        ...

    def join(self, other: Self) -> Self:
        """These rows and then the other's."""
        ...

    def keep(self, counts: list[int]) -> None:
        """Of the tokens of the last step, the first so many of each row; the others were not to be read."""
        ...


@dataclass
class PaddedRows:
    """Keys and values, padded on the left."""

    layers: Any
    """DynamicCache of (rows, heads, tokens, size)."""
    mask: Tensor
    """(rows, tokens): 1 at a row's own tokens, 0 at padding."""
    step: int = 0
    """Columns of the last step."""

    def only(self, kept: list[int]) -> "PaddedRows":
        """The rows at these places, without columns that are padding in all of them."""
        mask = self.mask[kept]
        start = int(mask.any(0).int().argmax())
        layers = [
            (layer.keys[kept, :, start:], layer.values[kept, :, start:]) for layer in self.layers.layers
        ]
        return PaddedRows(DynamicCache(layers), mask[:, start:])

    def join(self, other: "PaddedRows") -> "PaddedRows":
        """These rows and then the other's."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        pairs = zip(self.layers.layers, other.layers.layers, strict=True)
        layers = [(_stack([a.keys, b.keys], width), _stack([a.values, b.values], width)) for a, b in pairs]
        masks = [pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        return PaddedRows(DynamicCache(layers), torch.cat(masks))

    def keep(self, counts: list[int]) -> None:
        """Of the tokens of the last step, the first so many of each row; the others were not to be read."""
        most = max(counts)
        self.layers.crop(most - self.step)  # a negative number: so many less
        kept = self.mask.new_tensor([[1] * count + [0] * (most - count) for count in counts])
        self.mask = torch.cat([self.mask[:, : -self.step], kept], 1)


def _stack(parts: list[Tensor], width: int) -> Tensor:
    """(rows, heads, tokens, size) tensors in one, padded on the left to `width` tokens."""
    return torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in parts])


def _keep_double(model: Any) -> None:
    """Let a Qwen2's norms compute in float64 where they would round to float32 on the way.

    Where a value lies on the edge of two floats, the last bits of what came before decide, and those
    differ with batch and memory.
    """
    for module in model.modules():
        if type(module).__name__.startswith("Qwen2") and hasattr(module, "variance_epsilon"):
            shape, settings = module.weight.shape, {"weight": module.weight, "eps": module.variance_epsilon}
            module.forward = partial(rms_norm, normalized_shape=shape, **settings)


class ModelRunner:
    """A causal model of transformers, with or without an image processor.

    Args:
        model: a loaded `…ForCausalLM` or `…ForImageTextToText`, in evaluation mode.
        eyes: the image processor of the Qwen-VL families (patches and a grid); None: it sees nothing.
        context: most tokens of prompt and reply together.
    """

    def __init__(self, model: Any, eyes: Any, context: int) -> None:
        self._model = model
        self._eyes = eyes
        self.context = context
        self.kept = _KEPT
        self.drafts = True
        """Whether `step` may read tokens that the rows do not keep."""
        if model.dtype == torch.float64:
            _keep_double(model)
        # transformers 5.24 calls it by another name.
        self._cache = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        # The first cosine of a process may be rounded otherwise than all later ones (seen with MKL).
        torch.arange(4096.0).cos().sin()
        self._prefixes: OrderedDict[tuple[Any, ...], Prefix] = OrderedDict()

    def prefix(self, ids: list[int], image: Image | None, rest: int) -> tuple[Prefix, bool]:
        """The computed prefix of a prompt, and whether it was still there.

        Args:
            ids: token ids, the picture one token.
            rest: tokens of the prompt that follow.

        Raises:
            PromptTooLong: they leave no room for one more token; nothing was computed.
            EngineError: the model sees no pictures.
        """
        key = (image.hash if image else None, *ids)
        found = self._prefixes.get(key)
        inputs: dict[str, Tensor] = {}
        if found:
            ids = found.ids
        elif image:
            ids, inputs = self._look(ids, image)
        if len(ids) + rest >= self.context:
            raise PromptTooLong(len(ids) + rest, self.context)
        prefix = self._prefixes[key] = found or self._read(ids, inputs)
        self._prefixes.move_to_end(key)
        while len(self._prefixes) > 1 and sum(len(kept.ids) for kept in self._prefixes.values()) > self.kept:
            self._prefixes.popitem(last=False)
        return prefix, found is not None

    def prefill(self, rows: Sequence[tuple[Prefix, list[int]]], keep: int = 1) -> tuple[Tensor, Rows]:
        """Read what follows the prefixes.

        Returns:
            Logits at the last `keep` tokens of every row, (rows, keep, vocabulary), and the rows.
        """
        width = max(len(prefix.ids) for prefix, _ in rows)
        length = max(len(ids) for _, ids in rows)
        caches = zip(*(prefix.cache.layers for prefix, _ in rows), strict=True)
        layers = [
            (_stack([each.keys for each in layer], width), _stack([each.values for each in layer], width))
            for layer in caches
        ]
        ids, positions, mask = [], [], []
        for prefix, rest in rows:
            padding = [0] * (length - len(rest))
            ids.append(padding + rest)
            positions.append(padding + list(range(prefix.next, prefix.next + len(rest))))
            before = [0] * (width - len(prefix.ids)) + [1] * len(prefix.ids)
            mask.append(before + padding + [1] * len(rest))
        read = PaddedRows(DynamicCache(layers), self._tensor(mask))
        where = {"attention_mask": read.mask, "position_ids": self._tensor(positions)}
        return self._forward(self._tensor(ids), keep, read.layers, **where), read

    def step(self, rows: Any, tokens: Sequence[list[int]], positions: Sequence[int]) -> Tensor:
        """Read more tokens in every row of a `prefill`: at least one, and all of them unless `rows.keep`
        says otherwise.

        Args:
            positions: of the first token of each row.

        Returns:
            Logits (rows, most tokens of a row, vocabulary), at a row's own tokens first.
        """
        rows.step = max(map(len, tokens))
        padding = [[0] * (rows.step - len(own)) for own in tokens]
        own = [[1] * len(ids) + rest for ids, rest in zip(tokens, padding, strict=True)]
        rows.mask = torch.cat([rows.mask, self._tensor(own)], 1)
        columns = torch.arange(rows.step, device=rows.mask.device)
        where = {"attention_mask": rows.mask, "position_ids": self._tensor([[*positions]]).T + columns}
        ids = [ids + rest for ids, rest in zip(tokens, padding, strict=True)]
        return self._forward(self._tensor(ids), rows.step, rows.layers, **where)

    def forget(self) -> None:
        """Drop all kept prefixes and give the device's memory back."""
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _look(self, ids: list[int], image: Image) -> tuple[list[int], dict[str, Tensor]]:
        """Token ids with one for each of the picture's tokens, and the tensors that go with them."""
        token = getattr(self._model.config, "image_token_id", None)
        if self._eyes is None or token not in ids:
            raise EngineError(
                "this model sees no pictures here (engine=transformers shows them to Qwen-VL and its kin): "
                "the step needs another model, or engine=vllm"
            )
        try:
            seen = self._eyes(images=image.pixels, return_tensors="pt")
        except ValueError as error:
            size = "x".join(map(str, image.pixels.size))
            raise EngineError(f"the model can't be shown a picture of {size} pixels: {error}") from error
        grid = seen["image_grid_thw"]
        count = int(grid.prod()) // self._eyes.merge_size**2
        place = ids.index(token)
        ids = ids[:place] + [token] * count + ids[place + 1 :]
        types = torch.tensor([[int(index == token) for index in ids]])
        pixels = seen["pixel_values"].to(self._model.dtype)
        inputs = {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types}
        return ids, {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _read(self, ids: list[int], inputs: dict[str, Tensor]) -> Prefix:
        column = self._tensor([ids])
        positions = torch.arange(len(ids), device=column.device)[None]
        if inputs:
            described = {name: inputs[name] for name in ("image_grid_thw", "mm_token_type_ids")}
            positions, _ = self._model.base_model.get_rope_index(column, **described)
        cache = self._empty()
        self._forward(column, 1, cache, position_ids=positions, **inputs)
        return Prefix(ids, cache, int(positions.max()) + 1)

    def _empty(self) -> Any:
        """The cache that a prefix is read into."""
        return DynamicCache()

    @torch.no_grad()
    def _forward(self, ids: Tensor, keep: int, cache: Any, **inputs: Tensor) -> Tensor:
        """Logits (rows, keep, vocabulary); the cache grows by the tokens read."""
        logits: Tensor = self._model(
            input_ids=ids, use_cache=True, logits_to_keep=keep, **{self._cache: cache}, **inputs
        ).logits
        return logits

    def _tensor(self, values: list[list[int]]) -> Tensor:
        return torch.tensor(values, device=self._model.device)

    @staticmethod
    def draw(
        logits: Tensor, samplings: Sequence[Sampling], seen: Sequence[set[int]], dice: Sequence[random.Random]
    ) -> list[int]:
        """One token a row: repetition penalty, then temperature, then top-p, by each row's own dice.

        Args:
            logits: (rows, vocabulary).
            seen: token ids of prompt and reply so far, row by row; read where there is a penalty.
            dice: rolled once in every row that is sampled, so that neighbours can't change a reply.
        """
        logits = logits.float()
        for row, (sampling, ids) in enumerate(zip(samplings, seen, strict=True)):
            if sampling.repetition_penalty != 1:
                index = torch.tensor(list(ids), device=logits.device)
                old = logits[row, index]
                logits[row, index] = torch.where(
                    old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty
                )
        drawn = logits.argmax(-1)
        hot = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
        if hot:

            def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
                return torch.tensor(values, device=logits.device, dtype=dtype)[:, None]

            heat = column([samplings[row].temperature for row in hot])
            ranked = (logits[hot] / heat).softmax(-1).sort(descending=True)
            top_p = column([samplings[row].top_p for row in hot])
            inside = ranked.values.cumsum(-1) - ranked.values < top_p
            inside[:, 0] = True
            # Back in the vocabulary's order: near ties may swap ranks between batches.
            kept = torch.zeros_like(ranked.values).scatter(-1, ranked.indices, ranked.values * inside)
            ladder = kept.double().cumsum(-1)
            rolled = column([dice[row].random() for row in hot], torch.float64) * ladder[:, -1:]
            drawn[hot] = torch.searchsorted(ladder, rolled, right=True).squeeze(-1)
        tokens: list[int] = drawn.tolist()
        return tokens

    @staticmethod
    def odds(logits: Tensor, told: list[list[int]]) -> tuple[tuple[float, ...], float]:
        """Probability of each option among the options, and of all together.

        Args:
            logits: (vocabulary,).
            told: token ids of each option.
        """
        logprobs = logits.float().log_softmax(-1)
        options = torch.stack([logprobs[ids].logsumexp(-1) for ids in told])
        return tuple(options.softmax(-1).tolist()), float(options.logsumexp(-1).double().exp().clamp(max=1))

    @staticmethod
    def rate(logits: Tensor, targets: list[int]) -> list[tuple[float, float]]:
        """Log-probability and raw logit of each target.

        Args:
            logits: (targets, vocabulary).
        """
        logits = logits.float()
        raw = logits[range(len(targets)), targets]
        return list(zip((raw - logits.logsumexp(-1)).tolist(), raw.tolist(), strict=True))
