"""Packs lessons into tensors, and runs the language model on them.

Lessons about one image share its tokens: each prompt with its reply attends to the image and to itself only.
Tokens are packed without padding; only attention is computed on padded groups of lessons of similar length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scalecap.scenes.architecture import GRID, IMAGE_TOKENS, MERGE
from scalecap.scenes.train.lessons import Lesson

LENGTHS = (24, 32, 48, 80, 160, 320)
"""Upper bounds of the groups' lengths; longer lessons are another group."""

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


class Group(NamedTuple):
    """Segments of similar length whose attention is computed at once."""

    tokens: Tensor
    """(segments, length): indices of their tokens, right-padded with 0."""
    image: Tensor | None
    """(segments, prefix): indices of the tokens of the image that each attends to, or None."""

    def keys(self) -> Tensor:
        """(segments, prefix + length): indices of the tokens that a segment may attend to."""
        return self.tokens if self.image is None else torch.cat([self.image, self.tokens], dim=1)


class Packed(NamedTuple):
    """Packed lessons."""

    ids: Tensor
    """(tokens,)"""
    positions: Tensor
    """(3, 1, tokens): M-RoPE positions (time, row, column)."""
    groups: list[Group]
    queries: Tensor
    """Token indices of all groups, flattened."""
    keys: Tensor
    """The same for `Group.keys`."""
    inverse: Tensor
    """(tokens,): index of each token in `queries`."""
    predicted_at: Tensor
    """(targets,): indices of the tokens at which `targets` are predicted."""
    targets: Tensor
    """(targets,): token ids to predict."""
    weights: Tensor
    """(targets,): loss weights."""
    judged: Tensor
    """(statement tokens,): indices of the tokens at which statements are judged."""
    holds: Tensor
    """(statement tokens,): 1 if the statement is true, else 0."""
    image_at: Tensor
    """(image tokens,): their indices, image by image."""


class Packer:
    """Tokenizes and packs lessons."""

    def __init__(self, tokenizer: Any) -> None:
        self._ids: dict[str, list[int]] = {}
        self._tokenizer = tokenizer
        self._prefix = self._encode(_SYSTEM)
        start, pad, end = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
        self._image_ids = self._prefix + tokenizer.convert_tokens_to_ids([start, *[pad] * IMAGE_TOKENS, end])
        first, cells = len(self._prefix) + 1, GRID // MERGE
        self._grid = [(i, i, i) for i in range(first)]
        self._grid += [(first, first + i // cells, first + i % cells) for i in range(IMAGE_TOKENS)]
        self._grid.append((first + cells,) * 3)

    def _encode(self, text: str) -> list[int]:
        known = self._ids.get(text)
        if known is None:
            known = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(text) < 120 and len(self._ids) < 200_000:
                self._ids[text] = known
        return known

    def _prompt(self, lesson: Lesson) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of the prompt, and (index, 0 or 1) of the tokens of statements in it.

        A statement extends up to the next one, the last to the end of the prompt.
        """
        if not lesson.judged:
            return self._encode(lesson.prompt), []
        encoded = self._tokenizer(lesson.prompt, add_special_tokens=False, return_offsets_mapping=True)
        statement_tokens, at, starts = [], 0, []
        for text, _ in lesson.judged:
            at = lesson.prompt.index(text, at)
            starts.append(at)
        for place, (_, end) in enumerate(encoded["offset_mapping"]):
            number = sum(start < end for start in starts) - 1
            if number >= 0:
                statement_tokens.append((place, int(lesson.judged[number][1])))
        return list(encoded["input_ids"]), statement_tokens

    def length(self, lesson: Lesson) -> int:
        """Number of target tokens: those of the reply and the end token."""
        return len(self._encode(lesson.reply)) + 1

    def pack(self, rows: Sequence[Sequence[Lesson]], alone: Sequence[Lesson] = ()) -> Packed:
        """Packs rows of lessons, one row per image, and lessons without images."""
        ids: list[int] = []
        positions: list[tuple[int, int, int]] = []
        predicted_at: list[int] = []
        weights: list[float] = []
        judged: list[tuple[int, int]] = []
        images: list[range] = []
        segments: list[tuple[range, int | None]] = []

        def add(lesson: Lesson, row: int | None) -> None:
            start = self._grid[-1][0] + 1 if row is not None else 0
            prompt_ids, statement_tokens = self._prompt(lesson)
            before = [] if row is not None else self._prefix
            prompt = before + prompt_ids + self._encode("<|im_end|>\n<|im_start|>assistant\n")
            reply = self._encode(lesson.reply) + self._encode("<|im_end|>")
            first = len(ids)
            judged.extend((first + len(before) + place, holds) for place, holds in statement_tokens)
            predicted_at.extend(range(first + len(prompt) - 1, first + len(prompt) + len(reply) - 1))
            weights.extend([lesson.weight] * (len(reply) - 1) + [min(1.0, lesson.weight)])
            ids.extend(prompt + reply)
            positions.extend((start + i,) * 3 for i in range(len(prompt) + len(reply)))
            segments.append((range(first, len(ids)), row))

        for row, lessons in enumerate(rows):
            images.append(range(len(ids), len(ids) + len(self._image_ids)))
            ids.extend(self._image_ids)
            positions.extend(self._grid)
            for lesson in lessons:
                add(lesson, row)
        for lesson in alone:
            add(lesson, None)
        groups = _make_groups(images, segments)
        flat = torch.tensor(ids)
        queries = torch.cat([group.tokens.flatten() for group in groups])
        inverse = torch.zeros(len(ids), dtype=torch.long)
        real = torch.cat([_is_token(group.tokens) for group in groups])
        inverse[queries[real]] = torch.arange(len(queries))[real]
        predicted = torch.tensor(predicted_at)
        first = len(self._prefix) + 1
        image_at = [place for image in images for place in image[first : first + IMAGE_TOKENS]]
        return Packed(
            ids=flat,
            positions=torch.tensor(positions).T[:, None],
            groups=groups,
            queries=queries,
            keys=torch.cat([group.keys().flatten() for group in groups]),
            inverse=inverse,
            predicted_at=predicted,
            targets=flat[predicted + 1],
            weights=torch.tensor(weights),
            judged=torch.tensor([place for place, _ in judged], dtype=torch.long),
            holds=torch.tensor([holds for _, holds in judged], dtype=torch.long),
            image_at=torch.tensor(image_at, dtype=torch.long),
        )


def _is_token(tokens: Tensor) -> Tensor:
    """(segments · length,): mask of the entries that are not padding; index 0 only starts a segment."""
    real = tokens > 0
    real[:, 0] = True
    return real.flatten()


def _make_groups(images: Sequence[range], segments: Sequence[tuple[range, int | None]]) -> list[Group]:
    groups = []
    if images:
        groups.append(Group(torch.tensor([list(image) for image in images]), None))
    by_length: dict[tuple[bool, int], list[tuple[range, int | None]]] = {}
    for segment, row in segments:
        length = next((length for length in LENGTHS if len(segment) <= length), LENGTHS[-1] + 1)
        by_length.setdefault((row is not None, length), []).append((segment, row))
    for (sees, _), group in sorted(by_length.items()):
        longest = max(len(segment) for segment, _ in group)
        tokens = torch.zeros(len(group), longest, dtype=torch.long)
        for number, (segment, _) in enumerate(group):
            tokens[number, : len(segment)] = torch.tensor(list(segment))
        image = torch.tensor([list(images[row]) for _, row in group if row is not None]) if sees else None
        groups.append(Group(tokens, image))
    return groups


class Prediction(NamedTuple):
    """Outputs of the model."""

    logits: Tensor
    """(targets, vocabulary)"""
    judge_hidden: Tensor
    """(statement tokens, hidden): output of layer `judge_at` at the tokens to judge."""


def predict(model: Any, packed: Packed, merged: Tensor | None = None, judge_at: int = 0) -> Prediction:
    """The forward pass of the language model on packed lessons.

    Args:
        merged: (images, 36, hidden), outputs of the vision tower for the rows' images, or None.
        judge_at: the layer (from 1) whose output is used to judge statements.
    """
    language = model.model.language_model
    hidden = language.embed_tokens(packed.ids)
    if merged is not None:
        hidden = hidden.index_copy(0, packed.image_at, merged.flatten(0, 1).to(hidden.dtype))
    rotate = _rotation(language, hidden, packed.positions)
    judge_hidden = hidden
    for number, layer in enumerate(language.layers, 1):
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (
            heads.view(len(heads), -1, attention.head_dim)
            for heads in _fused_linear(projections, layer.input_layernorm(hidden))
        )
        hidden = hidden + attention.o_proj(_attend(rotate(query), rotate(key), value, packed))
        mlp = layer.mlp
        gate, up = _fused_linear((mlp.gate_proj, mlp.up_proj), layer.post_attention_layernorm(hidden))
        hidden = hidden + mlp.down_proj(mlp.act_fn(gate) * up)
        if number == judge_at:
            judge_hidden = hidden
    hidden = language.norm(hidden[packed.predicted_at])
    return Prediction(model.lm_head(hidden), judge_hidden[packed.judged])


def _fused_linear(projections: Sequence[nn.Linear], x: Tensor) -> tuple[Tensor, ...]:
    """Several linear projections of the same input in one matrix product."""
    weights: list[Tensor] = [each.weight for each in projections]
    biases: list[Tensor] = [each.bias for each in projections if each.bias is not None]
    made = nn.functional.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
    return torch.split(made, [each.out_features for each in projections], dim=-1)


def _rotation(language: Any, hidden: Tensor, positions: Tensor) -> Any:
    """Qwen2.5-VL's rotary embedding as a function on (tokens, heads, size)."""
    cos, sin = (angles[0][:, None] for angles in language.rotary_emb(hidden[None], positions))

    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        rotated = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
        turned: Tensor = x * cos.to(x.dtype) + rotated * sin.to(x.dtype)
        return turned

    return rotate


def _attend(query: Tensor, key: Tensor, value: Tensor, packed: Packed) -> Tensor:
    """Attention, (tokens, heads · size): causal within a segment, full to the segment's image."""
    kv_heads, shared, size = key.shape[1], query.shape[1] // key.shape[1], query.shape[2]
    lengths = [group.tokens.shape for group in packed.groups]
    spans = [group.keys().shape for group in packed.groups]
    queries = torch.split(query[packed.queries], [a * b for a, b in lengths])
    keys, values = (torch.split(each[packed.keys], [a * b for a, b in spans]) for each in (key, value))
    out = []
    for (segments, length), (_, span), q, k, v in zip(lengths, spans, queries, keys, values, strict=True):
        # Query heads that share a key head are concatenated: (segments, key heads, shared · length, size).
        q = q.view(segments, length, kv_heads, shared, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        k, v = (each.view(segments, span, kv_heads, size).transpose(1, 2) for each in (k, v))
        mask = torch.ones(length, span, dtype=torch.bool, device=q.device).tril(span - length)
        scores = (q @ k.transpose(-1, -2)).view(segments, kv_heads, shared, length, span) * size**-0.5
        probabilities = nn.functional.softmax(scores.float().masked_fill(~mask, -torch.inf), dim=-1).to(
            v.dtype
        )
        attended = (probabilities.flatten(2, 3) @ v).view(segments, kv_heads, shared, length, size)
        out.append(attended.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1))
    return torch.cat(out)[packed.inverse]
