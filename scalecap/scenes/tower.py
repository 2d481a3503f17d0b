"""Teach the vision tower first: heads on its merged tokens name what is in each place.

Without this, a model trained on text alone stays colour- and shape-blind for very long.
"""

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from scalecap.scenes.architecture import GRID, IMAGE_TOKENS, MERGE, normalise, see
from scalecap.scenes.kinds import GROUNDS, KINDS
from scalecap.scenes.world import Scene, render, sample

log = logging.getLogger(__name__)

_EXTENTS = ("small", "large", 2, 3)
_FACINGS = ("left", "right")


class Heads(nn.Module):
    """Linear readings of a merged token: kind, extent, facing (0 = nothing), ground, where."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.kind = nn.Linear(hidden, 1 + len(KINDS))
        self.extent = nn.Linear(hidden, 1 + len(_EXTENTS))
        self.facing = nn.Linear(hidden, 1 + len(_FACINGS))
        self.ground = nn.Linear(hidden, len(GROUNDS))
        self.where = nn.Linear(hidden, IMAGE_TOKENS)

    def loss(self, merged: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy, and the accuracy of each reading where there is something.

        Args:
            merged: (batch, 36, hidden).
            labels: (batch, 36, 5) from `label`.
        """
        merged = merged.float()
        total = merged.new_zeros(())
        right = {}
        thing = labels[..., 0] > 0
        readings = (self.kind, self.extent, self.facing, self.ground, self.where)
        for index, (name, head) in enumerate(
            zip(("kind", "extent", "facing", "ground", "where"), readings, strict=True)
        ):
            logits = head(merged)
            total = total + nn.functional.cross_entropy(logits.flatten(0, 1), labels[..., index].flatten())
            told = thing & (labels[..., index] > 0) if index < 3 else torch.ones_like(thing)
            right[name] = (logits.argmax(-1) == labels[..., index])[told].float().mean().item()
        return total, right


def label(scene: Scene) -> Tensor:
    """What each merged token shows: (36, 5) of kind, extent, facing, ground, where."""
    cells = GRID // MERGE
    labels = torch.zeros(cells, cells, 5, dtype=torch.long)
    labels[..., 3] = list(GROUNDS).index(scene.ground)
    labels[..., 4] = torch.arange(IMAGE_TOKENS).reshape(cells, cells)
    names = list(KINDS)
    for thing in scene.things:
        row, column = divmod(thing.place, 3)
        extent = _EXTENTS.index(thing.size if thing.size else thing.count)
        facing = _FACINGS.index(thing.facing) if thing.facing else -1
        reading = torch.tensor([names.index(thing.kind) + 1, extent + 1, facing + 1])
        labels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2, :3] = reading
    return labels.flatten(0, 1)


def pictures(first_seed: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of (batch, 3, 168, 168) pictures and their (batch, 36, 5) labels."""
    seed = first_seed
    while True:
        scenes = [sample(seed + i) for i in range(batch)]
        seed += batch
        yield normalise([render(scene, 168) for scene in scenes]), torch.stack([label(s) for s in scenes])


def teach(visual: nn.Module, heads: Heads, *, steps: int, batch: int = 64, first_seed: int) -> None:
    """Train the tower and its heads together for `steps` batches of fresh pictures."""
    weights = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    # Peak 1e-3: warm up over 100 steps, then fall along a cosine to a tenth.
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: 1e-3 * min(1.0, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
    )
    seen: dict[str, float] = {}
    for step, (images, labels) in zip(range(steps), pictures(first_seed, batch), strict=False):
        loss, right = heads.loss(see(visual, images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rate.step()
        seen = {name: 0.9 * seen.get(name, share) + 0.1 * share for name, share in right.items()}
        if step % 50 == 0 or step == steps - 1:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in seen.items())
            log.info("tower step %d of %d: loss %.3f, right: %s", step, steps, loss.item(), shares)
