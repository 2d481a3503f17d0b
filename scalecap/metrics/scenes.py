"""Captions of the embedded world against its ground truth."""

import random
from collections.abc import Mapping
from typing import Any

from scalecap.metrics import share, texts
from scalecap.scenes.claims import Fact, everything, facts
from scalecap.scenes.grammar import sentences
from scalecap.scenes.statements import statements
from scalecap.stages import Columns, Measures, stage
from scalecap.text.segmentation import word_count

SORTS = ("object", "count", "size", "colour", "part", "facing", "position", "relation", "ground")


@stage(
    better={
        **{"wrong": "lower", "chair_i": "lower", "chair_s": "lower", "unread": "lower"},
        "words": "neither",
    }
)
def scenes(
    captions: Columns, truth: Any, before: Columns | None = None, *, words: int | None = None
) -> Measures:
    """Facts that each caption states, compared with the truth of its scene, each counted once.

    `precision` is true / stated, `recall` true / possible, `f1` 2 · true / (stated + possible);
    also by sort of fact. `chair_i` is the share of stated objects that are not there, `chair_s` that of
    sentences with such an object (Rohrbach et al. 2018, a sentence in place of a caption). Sentences
    that can't be read are counted in `unread`.
    """
    possible = everything(truth)
    return {
        name: measures_of(caption, truth, possible)
        for name, caption in texts({**(before or {}), **captions}, words)
    }


def measures_of(caption: str, truth: Mapping[str, Any], possible: frozenset[Fact]) -> dict[str, Any]:
    """The measures of one caption."""
    read = [[fact for claim in claims for fact in facts(claim, truth)] for claims in sentences(caption)]
    said = frozenset(fact for sentence in read for fact in sentence)
    invented = [any(f.sort == "object" and not f.true for f in sentence) for sentence in read if sentence]
    return {
        "true": sum(fact.true for fact in said),
        "wrong": sum(not fact.true for fact in said),
        **_rates(said, possible),
        "chair_i": share(not fact.true for fact in said if fact.sort == "object"),
        "chair_s": share(invented),
        "unread": share(not sentence for sentence in read),
        "words": word_count(caption),
        "sort": {
            sort: _rates(
                frozenset(fact for fact in said if fact.sort == sort),
                frozenset(fact for fact in possible if fact.sort == sort),
            )
            for sort in SORTS
        },
    }


def _rates(said: frozenset[Fact], possible: frozenset[Fact]) -> dict[str, Any]:
    true = sum(fact.true for fact in said)
    return {
        "precision": {"count": true, "of": len(said)},
        "recall": {"count": true, "of": len(possible)},
        "f1": {"count": 2 * true, "of": len(said) + len(possible)},
    }


@stage
def scene_statements(truth: Any, *, pairs: int = 4, seed: int = 0) -> Any:
    """Pairs of a true sentence about a scene and the same made false in one thing: {text, label, sort}.

    `sort` is what was changed: kind, count, size, colour, parts, facing, place, beside or ground.
    """
    rng = random.Random(f"{seed} {truth}")
    drawn = [statements(truth, rng) for _ in range(pairs)]
    return [
        {"text": text, "label": label, "sort": pair.sort}
        for pair in drawn
        for text, label in ((pair.true, True), (pair.false, False))
    ]
