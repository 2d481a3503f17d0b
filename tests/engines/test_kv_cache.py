"""Rows and tokens added and dropped in place, against plain lists."""

import random
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

import torch

from scalecap.engines import kv_cache
from scalecap.engines.kv_cache import PaddedBatch

HEADS, SIZE, LAYERS = 2, 3, 2


def states(values: list[list[float]]):
    """(rows, heads, tokens, size) with one number per token."""
    return torch.tensor(values)[:, None, :, None].expand(-1, HEADS, -1, SIZE)


def begin(rows: list[list[float]]) -> PaddedBatch:
    """A batch whose rows start with these numbers."""
    caches = []
    for row in rows:
        layer = SimpleNamespace(keys=states([row]), values=-states([row]))
        caches.append(SimpleNamespace(layers=[layer] * LAYERS))
    width = max(map(len, rows))
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return PaddedBatch.of(caches, width, mask)


def step(batch: PaddedBatch, tokens: list[list[float]]) -> None:
    """One step, as `ModelRunner.step` and the model do it."""
    batch.last_step = max(map(len, tokens))
    padded = [row + [0.0] * (batch.last_step - len(row)) for row in tokens]
    mask = [[1] * len(row) + [0] * (batch.last_step - len(row)) for row in tokens]
    batch.mask = torch.cat([batch.mask, torch.tensor(mask)], 1)
    cache = batch.cache
    for layer in range(LAYERS):
        keys, values = cache.update(states(padded), -states(padded), layer)
        assert keys.shape == values.shape
        assert keys.shape[2] == batch.mask.shape[1]


def contents(batch: PaddedBatch) -> list[list[float]]:
    """Each row's own numbers, which all layers, heads, keys and values agree on."""
    for layer in batch.layers:
        assert torch.isfinite(layer.keys).all()
        assert torch.equal(layer.keys, -layer.values)
        assert torch.equal(layer.keys, layer.keys[:, :1, :, :1].expand_as(layer.keys))
        assert torch.equal(layer.keys, batch.layers[0].keys)
    rows = zip(batch.layers[0].keys[:, 0, :, 0], batch.mask, strict=True)
    return [row[mask.bool()].tolist() for row, mask in rows]


@pytest.mark.parametrize("seed", range(12))
def test_rows_keep_their_own_tokens(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kv_cache, "ROOM", 3)
    rng = random.Random(seed)
    numbers = iter(float(n) for n in range(1, 100_000))

    def draw(least: int, most: int) -> list[float]:
        return [next(numbers) for _ in range(rng.randint(least, most))]

    expected = [draw(1, 6) for _ in range(rng.randint(1, 4))]
    batch = begin(expected)
    for _ in range(60):
        match rng.choice(["step", "step", "accept", "keep", "extend"]):
            case "step":
                tokens = [draw(1, 1) for _ in expected]
                step(batch, tokens)
                expected = [row + more for row, more in zip(expected, tokens, strict=True)]
            case "accept":
                tokens = [draw(1, 5) for _ in expected]
                step(batch, tokens)
                counts = [rng.randint(1, len(row)) for row in tokens]
                batch.accept(counts)
                expected = [
                    row + more[:count] for row, more, count in zip(expected, tokens, counts, strict=True)
                ]
            case "keep":
                rows = sorted(rng.sample(range(len(expected)), rng.randint(1, len(expected))))
                order = batch.keep(rows)
                assert sorted(order) == rows
                expected = [expected[row] for row in order]
            case "extend" if len(expected) < 8:
                more = [draw(1, 12) for _ in range(rng.randint(1, 3))]
                batch.extend(begin(more))
                expected += more
        assert contents(batch) == expected


def test_a_batch_without_memory_for_more_rows_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    batch = begin([[1.0, 2.0], [3.0]])
    grow = batch.layers[1]._grow

    def fail(*arguments: int) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(batch.layers[1], "_grow", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        batch.extend(begin([[4.0, 5.0, 6.0]]))
    assert contents(batch) == [[1.0, 2.0], [3.0]]
    monkeypatch.setattr(batch.layers[1], "_grow", grow)
    batch.extend(begin([[4.0, 5.0, 6.0]]))
    assert contents(batch) == [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]
