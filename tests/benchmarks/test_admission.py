"""What is computed, in exact counts: an engine in virtual time whose KV cache is smaller than the data."""

import pytest
from admission import WAYS, Case, composed, measure
from simulated import Shape
from throughput import Work

BLOCK = 16


@pytest.mark.parametrize(
    ("case", "again", "steps"),
    [
        (Case(10, 1728, 5), 0, (517, 757)),
        (Case(16, 1036, 8), 132, (648, 1008)),
    ],
    ids=lambda value: f"{value.room} of {value.images}" if isinstance(value, Case) else None,
)
def test_images_are_computed_once_and_text_only_steps_fill_the_batch(
    case: Case, again: int, steps: tuple[int, int]
):
    """Prompt tokens computed again an image, and the engine's steps: ours, and if rows kept their place."""
    work, shape = Work(images=case.images), Shape(case.tokens)
    found = measure(work, composed(), case, BLOCK, ("ours", "to the end"))
    ours, to_the_end = found.values()
    assert ours.requests == to_the_end.requests == case.images * work.requests
    assert len(ours.encoded) == case.images
    shared = shape.system + shape.image
    whole = shared // BLOCK * BLOCK
    least = whole + (work.requests - 2) * (shared - whole + shape.text) + 2 * (shape.system + shape.text)
    assert ours.computed == case.images * (least + again)
    assert (ours.steps, to_the_end.steps) == steps


def test_every_way_sends_the_same_requests():
    work, case = Work(images=4), Case(4, 192, 2)
    found = measure(work, composed(), case, BLOCK)
    assert {way: engine.requests for way, engine in found.items()} == dict.fromkeys(WAYS, 4 * work.requests)
    assert all(len(engine.encoded) == case.images for engine in found.values())
