"""Batched forward passes of a transformers model with a prefix KV cache.

Every prompt starts with a prefix (system turn and image) whose keys and values are computed once and reused
by all requests about that image. Rows are padded on the left; masks and explicit positions make a row's
result independent of the other rows, up to floating-point rounding and exactly in float64.
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
from torch.nn.functional import rms_norm
from transformers import DynamicCache

from scalecap.engines.base import EngineError, Image, PromptTooLong, Sampling
from scalecap.engines.grouped_attention import use_grouped_attention
from scalecap.engines.kv_cache import PaddedBatch

_MAX_CACHED_TOKENS = 32_768
"""Size of the prefix cache: about 2 GB for a 7B model, 25 images of a megapixel."""


@dataclass(frozen=True)
class Prefix:
    """The computed prefix of all requests about one image."""

    ids: list[int]
    """Token ids, one for each of the image's tokens."""
    cache: Any
    """transformers' cache with one row; batches copy it."""
    next_position: int
    """Position of the token that follows (an image has fewer positions than tokens)."""


class Batch(Protocol):
    """KV cache of sequences that are being continued; the methods are those of `PaddedBatch`."""

    def keep(self, rows: Sequence[int]) -> list[int]: ...
    def extend(self, other: Self) -> None: ...
    def accept(self, counts: list[int]) -> None: ...


def _use_float64_norms(model: Any) -> None:
    """Makes Qwen2's RMS norms compute in float64, where they would round to float32.

    When a value lies between two float32 numbers, the last bits of its inputs decide how it is rounded, and
    those vary with batch and memory layout.
    """
    for module in model.modules():
        if type(module).__name__.startswith("Qwen2") and hasattr(module, "variance_epsilon"):
            shape, settings = module.weight.shape, {"weight": module.weight, "eps": module.variance_epsilon}
            module.forward = partial(rms_norm, normalized_shape=shape, **settings)


class ModelRunner:
    """A Hugging Face causal language model with an optional vision tower.

    Args:
        model: a loaded `…ForCausalLM` or `…ForImageTextToText`, in evaluation mode.
        image_processor: that of the Qwen-VL families (patches and a grid); None: the model gets no images.
        context_length: limit on tokens of prompt and reply together.
    """

    supports_drafts = True
    """Whether `step` may compute tokens that `Batch.accept` discards."""

    def __init__(self, model: Any, image_processor: Any, context_length: int) -> None:
        self._model = model
        self._image_processor = image_processor
        self.context_length = context_length
        self.max_cached_tokens = _MAX_CACHED_TOKENS
        if model.dtype == torch.float64:
            _use_float64_norms(model)
        if model.device.type == "cpu":
            use_grouped_attention(model)
        # transformers 5.24 renamed the argument.
        self._cache_argument = (
            "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        )
        # The first cosine in a process may be rounded differently from all later ones (seen with MKL).
        torch.arange(4096.0).cos().sin()
        self._prefixes: OrderedDict[tuple[Any, ...], Prefix] = OrderedDict()

    def get_prefix(self, ids: list[int], image: Image | None, suffix_length: int) -> tuple[Prefix, bool]:
        """The computed prefix of a prompt, and whether it was in the cache.

        Args:
            ids: token ids, one for the image.
            suffix_length: tokens of the prompt that follow.

        Raises:
            PromptTooLong: the prompt leaves no room for another token; nothing was computed.
            EngineError: the model does not accept images, or not one of this size.
        """
        key = (image.hash if image else None, *ids)
        cached = self._prefixes.get(key)
        inputs: dict[str, Tensor] = {}
        if cached:
            ids = cached.ids
        elif image:
            ids, inputs = self._process_image(ids, image)
        if len(ids) + suffix_length >= self.context_length:
            raise PromptTooLong(len(ids) + suffix_length, self.context_length)
        prefix = self._prefixes[key] = cached or self._compute_prefix(ids, inputs)
        self._prefixes.move_to_end(key)
        excess = sum(len(each.ids) for each in self._prefixes.values()) - self.max_cached_tokens
        while len(self._prefixes) > 1 and excess > 0:
            _, oldest = self._prefixes.popitem(last=False)
            excess -= len(oldest.ids)
        return prefix, cached is not None

    def prefill(self, rows: Sequence[tuple[Prefix, list[int]]], keep: int = 1) -> tuple[Tensor, Batch]:
        """Computes the tokens that follow the prefixes.

        Returns:
            Logits at the last `keep` tokens of every row, (rows, keep, vocabulary), and the batch, for
            further steps.
        """
        width = max(len(prefix.ids) for prefix, _ in rows)
        length = max(len(ids) for _, ids in rows)
        ids, positions, mask = [], [], []
        for prefix, suffix in rows:
            padding = [0] * (length - len(suffix))
            ids.append(padding + suffix)
            first = prefix.next_position
            positions.append(padding + list(range(first, first + len(suffix))))
            before = [0] * (width - len(prefix.ids)) + [1] * len(prefix.ids)
            mask.append(before + padding + [1] * len(suffix))
        batch = PaddedBatch.of([prefix.cache for prefix, _ in rows], width, self._tensor(mask))
        inputs = {"attention_mask": batch.mask, "position_ids": self._tensor(positions)}
        return self._forward(self._tensor(ids), keep, batch.cache, **inputs), batch

    def step(self, batch: Any, tokens: Sequence[list[int]], positions: Sequence[int]) -> Tensor:
        """Computes more tokens in every row of a batch; all of them are kept unless `batch.accept` follows.

        Args:
            tokens: at least one for each row.
            positions: of each row's first token.

        Returns:
            Logits (rows, largest number of tokens, vocabulary); those of a row's own tokens come first.
        """
        batch.last_step = max(map(len, tokens))
        padding = [[0] * (batch.last_step - len(row)) for row in tokens]
        mask = [[1] * len(row) + zeros for row, zeros in zip(tokens, padding, strict=True)]
        batch.mask = torch.cat([batch.mask, self._tensor(mask)], 1)
        columns = torch.arange(batch.last_step, device=batch.mask.device)
        inputs = {"attention_mask": batch.mask, "position_ids": self._tensor([[*positions]]).T + columns}
        ids = [row + zeros for row, zeros in zip(tokens, padding, strict=True)]
        return self._forward(self._tensor(ids), batch.last_step, batch.cache, **inputs)

    def clear_cache(self) -> None:
        """Empties the prefix cache and returns the memory to the device."""
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _process_image(self, ids: list[int], image: Image) -> tuple[list[int], dict[str, Tensor]]:
        """Token ids with one for each of the image's tokens, and the model's image inputs."""
        token = getattr(self._model.config, "image_token_id", None)
        if self._image_processor is None or token not in ids:
            raise EngineError(
                "this model accepts no images with engine=transformers, which supports the Qwen-VL families: "
                "give the step another model, or use engine=vllm"
            )
        try:
            processed = self._image_processor(images=image.pixels, return_tensors="pt")
        except ValueError as error:
            size = "x".join(map(str, image.pixels.size))
            raise EngineError(f"the model can't process an image of {size} pixels: {error}") from error
        grid = processed["image_grid_thw"]
        count = int(grid.prod()) // self._image_processor.merge_size**2
        place = ids.index(token)
        ids = ids[:place] + [token] * count + ids[place + 1 :]
        types = torch.tensor([[int(each == token) for each in ids]])
        pixels = processed["pixel_values"].to(self._model.dtype)
        inputs = {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types}
        return ids, {name: tensor.to(self._model.device) for name, tensor in inputs.items()}

    def _compute_prefix(self, ids: list[int], inputs: dict[str, Tensor]) -> Prefix:
        input_ids = self._tensor([ids])
        positions = torch.arange(len(ids), device=input_ids.device)[None]
        if inputs:
            image_inputs = {name: inputs[name] for name in ("image_grid_thw", "mm_token_type_ids")}
            positions, _ = self._model.base_model.get_rope_index(input_ids, **image_inputs)
        cache = DynamicCache(config=self._model.config)
        self._forward(input_ids, 1, cache, position_ids=positions, **inputs)
        return Prefix(ids, cache, int(positions.max()) + 1)

    @torch.no_grad()
    def _forward(self, ids: Tensor, keep: int, cache: Any, **inputs: Tensor) -> Tensor:
        """Logits (rows, keep, vocabulary); the cache grows by the new tokens."""
        logits: Tensor = self._model(
            input_ids=ids, use_cache=True, logits_to_keep=keep, **{self._cache_argument: cache}, **inputs
        ).logits
        return logits

    def _tensor(self, values: list[list[int]]) -> Tensor:
        return torch.tensor(values, device=self._model.device)

    @staticmethod
    def sample(
        logits: Tensor, samplings: Sequence[Sampling], seen: Sequence[set[int]], rngs: Sequence[random.Random]
    ) -> list[int]:
        """Samples one token a row: repetition penalty, then temperature, then top-p.

        Args:
            logits: (rows, vocabulary).
            seen: token ids of prompt and reply so far, for each row; used if there is a penalty.
            rngs: each used once in every row that is not greedy, so that other rows can't change a reply.
        """
        logits = logits.float()
        for row, (sampling, ids) in enumerate(zip(samplings, seen, strict=True)):
            if sampling.repetition_penalty != 1:
                index = torch.tensor(list(ids), device=logits.device)
                old = logits[row, index]
                logits[row, index] = torch.where(
                    old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty
                )
        tokens = logits.argmax(-1)
        sampled = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
        if sampled:

            def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
                return torch.tensor(values, device=logits.device, dtype=dtype)[:, None]

            temperature = column([samplings[row].temperature for row in sampled])
            ranked = (logits[sampled] / temperature).softmax(-1).sort(descending=True)
            top_p = column([samplings[row].top_p for row in sampled])
            inside = ranked.values.cumsum(-1) - ranked.values < top_p
            inside[:, 0] = True
            # Back to the order of the vocabulary: near ties may swap ranks between batches.
            probs = torch.zeros_like(ranked.values).scatter(-1, ranked.indices, ranked.values * inside)
            cdf = probs.double().cumsum(-1)
            draws = column([rngs[row].random() for row in sampled], torch.float64) * cdf[:, -1:]
            tokens[sampled] = torch.searchsorted(cdf, draws, right=True).squeeze(-1)
        sampled_tokens: list[int] = tokens.tolist()
        return sampled_tokens

    @staticmethod
    def option_probs(logits: Tensor, option_ids: list[list[int]]) -> tuple[tuple[float, ...], float]:
        """Probability of each option among the options, and of all options together.

        Args:
            logits: (vocabulary,).
            option_ids: first-token ids of each option.
        """
        logprobs = logits.float().log_softmax(-1)
        options = torch.stack([logprobs[ids].logsumexp(-1) for ids in option_ids])
        return tuple(options.softmax(-1).tolist()), float(options.logsumexp(-1).double().exp().clamp(max=1))

    @staticmethod
    def token_logprobs(logits: Tensor, targets: list[int]) -> list[tuple[float, float]]:
        """Log-probability and raw logit of each target token.

        Args:
            logits: (targets, vocabulary).
        """
        logits = logits.float()
        raw = logits[range(len(targets)), targets]
        return list(zip((raw - logits.logsumexp(-1)).tolist(), raw.tolist(), strict=True))
