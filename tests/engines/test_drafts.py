"""Replies that repeat their prompt take fewer steps, and are the same."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.engines import drafts
from scalecap.engines.base import Generate, Generated, Image, Prompt, Sampling
from scalecap.engines.drafts import MAX_DRAFT_TOKENS, MAX_NGRAM, PromptLookup
from scalecap.engines.settings import EngineSettings, ModelSettings


@pytest.mark.parametrize(
    ("ids", "most", "draft"),
    [
        ([], 5, []),
        ([1, 2, 3], 5, []),
        ([1, 2, 3, 4, 1, 2], 5, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 0, []),
        ([7, 2, 8, 1, 2, 9, 7, 2], 1, [8]),  # the longer ending, not the later one
        ([1, 5, 1, 6, 1], 1, [6]),  # the later of two
        ([*range(20), 0], 99, [1, 2, 3, 4, 5]),
    ],
)
def test_a_draft_is_what_followed_the_longest_ending(ids: list[int], most: int, draft: list[int]):
    assert PromptLookup(ids).draft(most) == draft


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=10))
def test_a_draft_is_found_as_by_a_search(prompt: list[int], reply: list[int]):
    lookup = PromptLookup(prompt)
    for token in reply:
        lookup.add(token)
    ids = [*prompt, *reply]
    expected: list[int] = []
    for count in range(min(MAX_NGRAM, len(ids)), 0, -1):
        places = [at for at in range(count, len(ids)) if ids[at - count : at] == ids[-count:]]
        if places and not expected:
            expected = ids[places[-1] : places[-1] + MAX_DRAFT_TOKENS]
    assert lookup.draft(MAX_DRAFT_TOKENS) == expected


TEXTS = ["a b a b a b a b", "There is a cat. " * 4, "1 2 3 4 5 1 2 3", "yes", "no no no no no no no no"]


def requests(image: Image) -> list[Generate]:
    """Greedy, penalised and random requests of several lengths, with and without an image."""
    return [
        Generate(Prompt(text, shown), sampling, seed=number)
        for number, text in enumerate(TEXTS)
        for shown in (None, image)
        for sampling in (
            Sampling(temperature=0, max_tokens=40),
            Sampling(temperature=0, max_tokens=23, repetition_penalty=1.1),
            Sampling(temperature=0.5, max_tokens=31),
        )
    ]


async def generate_all(folder: Path, requests: Sequence[Generate]) -> tuple[list[Generated], list[int]]:
    """The replies, and for each step the number of tokens in all rows."""
    from scalecap.engines.transformers import open_transformers

    model = ModelSettings(name=str(folder), dtype="float64")
    engine = await open_transformers(model, EngineSettings(batch_size=8))
    steps, step = [], engine._runner.step

    def counted(rows: Any, tokens: Any, positions: Any) -> Any:
        steps.append(sum(map(len, tokens)))
        return step(rows, tokens, positions)

    engine._runner.step = counted  # type: ignore[method-assign]
    try:
        return list(await asyncio.gather(*map(engine.generate, requests))), steps
    finally:
        await engine.close()


def test_replies_are_the_same_with_drafts_in_fewer_steps(
    tiny_model: Path, image: Image, monkeypatch: pytest.MonkeyPatch
):
    drafted, drafted_steps = asyncio.run(generate_all(tiny_model, requests(image)))
    monkeypatch.setattr(drafts, "MAX_DRAFT_TOKENS", 0)
    plain, plain_steps = asyncio.run(generate_all(tiny_model, requests(image)))
    assert drafted == plain
    assert len(drafted_steps) < len(plain_steps)
    assert sum(plain_steps) == sum(reply.usage.generated_tokens - 1 for reply in plain)


def test_a_fusion_takes_a_third_of_the_steps(embedded: Path):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    known = [
        "I can see a large tent.",
        "The tent is large and orange and has an open flap and sloping sides.",
        "The tent is at the bottom.",
    ]
    prompt = Prompt("Join into one description:\n" + "\n".join(known))
    (reply,), steps = asyncio.run(generate_all(embedded, [Generate(prompt, Sampling(temperature=0))]))
    assert reply.text == " ".join(known)
    assert (len(steps), reply.usage.generated_tokens) == (9, 30)
