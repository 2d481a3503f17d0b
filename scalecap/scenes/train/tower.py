"""Pretraining of the vision tower.

Linear heads on its merged tokens classify what is in each place; trained on text alone, the model does not
learn colours and shapes for very long. Each merged token also regresses to the embedding of `Described` for
its place, so that tower and language model fit together when they are joined.
"""

from typing import Any

import torch
from torch import Tensor, nn

from scalecap.scenes.architecture import GRID, MERGE
from scalecap.scenes.kinds import COLOURS, GROUNDS, KINDS
from scalecap.scenes.views import View
from scalecap.scenes.world import CELL

_EXTENTS = ("small", "large", 2, 3)
_FACINGS = ("left", "right")
_CELLS = GRID // MERGE

HEAD_CLASSES = {
    "kind": 1 + len(KINDS),
    "colour": 1 + len(COLOURS),
    "extent": 1 + len(_EXTENTS),
    "facing": 1 + len(_FACINGS),
    "ground": len(GROUNDS),
    "row": _CELLS,
    "column": _CELLS,
    "sprite": 1 + 2 * len(KINDS),
}
"""Classification heads on a merged token and their numbers of classes; class 0 means that nothing is there.

A sprite is a kind with its direction, which makes the tower learn directions."""


def token_labels(view: View) -> Tensor:
    """Class labels of the merged tokens, (36, heads). In a window, `extent` is -100 (ignored)."""
    names, grounds = list(KINDS), list(GROUNDS)
    things = {thing.place: thing for thing in view.scene.things}
    labels = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            x = view.left + (column + 0.5) / _CELLS * view.side
            y = view.top + (row + 0.5) / _CELLS * view.side
            thing = things.get(3 * int(y // CELL) + int(x // CELL))
            shown = dict.fromkeys(HEAD_CLASSES, 0)
            shown |= {"ground": grounds.index(view.scene.ground), "row": row, "column": column}
            if thing is not None:
                kind = names.index(thing.kind)
                shown["kind"] = 1 + kind
                shown["colour"] = 1 + COLOURS.index(thing.colour)
                shown["extent"] = 1 + _EXTENTS.index(thing.size or thing.count)
                shown["facing"] = 1 + _FACINGS.index(thing.facing) if thing.facing else 0
                shown["sprite"] = 1 + 2 * kind + (thing.facing == "right")
            if not view.whole:
                shown["extent"] = -100
            labels.append(list(shown.values()))
    return torch.tensor(labels)


class Heads(nn.Module):
    """Linear classification heads on merged tokens."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size) for name, size in HEAD_CLASSES.items()})

    def loss(self, merged: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Sum of the heads' cross-entropies, and the accuracy of each on places that are not empty.

        Args:
            merged: (images, 36, hidden).
            labels: (images, 36, heads), see `token_labels`.
        """
        merged = merged.float()
        total = merged.new_zeros(())
        right = {}
        thing = labels[..., 0] > 0
        for index, (name, head) in enumerate(self.heads.items()):
            logits = head(merged)
            total = total + nn.functional.cross_entropy(logits.flatten(0, 1), labels[..., index].flatten())
            present = thing & (labels[..., index] >= (name == "facing"))
            right[name] = (logits.argmax(-1) == labels[..., index])[present].float().mean().item()
        return total, right


_WORDS = {"kind": list(KINDS), "colour": list(COLOURS), "extent": ["small", "large", "two", "three"]}
_SCALE, _OWN = 0.3, 0.3
"""Standard deviations of an embedding, and of its random part relative to the word's embedding."""


class Described(nn.Module):
    """Replaces the vision tower: each place is a fixed sum of embeddings of its labels.

    The embeddings of kinds, colours, sizes and counts are derived from those of their words. The language
    model first learns to compare statements with such tokens, cheaply, while the tower learns to produce them
    from pixels.
    """

    def __init__(self, tokenizer: Any, embeddings: Tensor, seed: int) -> None:
        """`embeddings` are those of an untrained model, (vocabulary, hidden)."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        unit = embeddings.detach() / embeddings.detach().std()
        for name, size in HEAD_CLASSES.items():
            if name == "sprite":  # kind and facing tell it
                continue
            table = torch.randn(size, embeddings.shape[1], generator=generator)
            if name in _WORDS:
                table *= _OWN
                for number, word in enumerate(_WORDS[name], 1):
                    table[number] += unit[tokenizer(f" {word}", add_special_tokens=False)["input_ids"]].mean(
                        0
                    )
            self.register_buffer(name, _SCALE * table)

    def forward(self, labels: Tensor) -> Tensor:
        """Embeds labels (images, 36, heads) as tokens (images, 36, hidden)."""
        known = labels.clamp(min=0)
        embeddings = [
            self.get_buffer(name)[known[..., index]]
            for index, name in enumerate(HEAD_CLASSES)
            if name != "sprite"
        ]
        return torch.stack(embeddings).sum(0)
