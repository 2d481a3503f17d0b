"""Careless captions: omissions and errors towards the prior, as large models make them.

They mention absent things that fit the theme, mistake unusual things for usual ones, and describe unusual
attributes as usual. A language model can predict these errors without the image, so it can be debiased. The
constants below are the error rates.
"""

import random
from collections.abc import Mapping
from typing import Any

from scalecap.scenes.claims import Claim
from scalecap.scenes.grammar import describe, introduce, set_scene
from scalecap.scenes.kinds import KINDS, PLACES
from scalecap.scenes.themes import (
    COUNTS,
    LEVELS,
    THEMES,
    USUAL_FACING,
    USUAL_LEVEL,
    USUAL_SIZE,
    colours,
    usual_place,
    weights,
)

LEFT_OUT = 0.25
INVENTED_LAST, INVENTED_BEFORE = 0.45, 0.12
"""Probability that an absent thing is added at the end of the caption, or before another thing."""
STRANGER_RENAMED = 0.5
UNUSUAL_MISTOLD = 0.25
"""Probability that an unusual size, colour, place or facing is described as the usual one."""
MISCOUNTED = 0.12
"""Probability that a group is miscounted (as a single one, if its kind usually is)."""
SET_SCENE = 0.6


def careless_caption(truth: Mapping[str, Any], rng: random.Random) -> str:
    """A short caption with omissions and errors."""
    sentences = [set_scene(Claim(ground=truth["ground"]), rng)] if rng.random() < SET_SCENE else []
    for claim in careless_claims(truth, rng):
        sentences += tell(claim, rng)
    return " ".join(sentences)


def careless_claims(truth: Mapping[str, Any], rng: random.Random) -> list[Claim]:
    """The claims of a careless caption, one per thing."""
    there = [thing["kind"] for thing in truth["things"]]
    used = set(there)
    claims: list[Claim] = []
    for thing in truth["things"]:
        if claims and rng.random() < LEFT_OUT:
            continue
        if rng.random() < INVENTED_BEFORE and claims:
            claims.append(_invented(truth["theme"], used, rng))
        claims.append(_observed(thing, truth, used, rng))
    if rng.random() < INVENTED_LAST:
        claims.append(_invented(truth["theme"], used, rng))
    return claims


def tell(claim: Claim, rng: random.Random) -> list[str]:
    """A sentence that introduces the thing, and possibly a second one with further details."""
    names = [name for name in ("size", "colour", "place") if getattr(claim, name)]
    later = {name for name in names if rng.random() < 0.4}
    first = introduce(claim.without(later), rng)
    return [first, describe(claim.only({*later, "facing"}))] if later or claim.facing else [first]


def _observed(
    thing: Mapping[str, Any], truth: Mapping[str, Any], used: set[str], rng: random.Random
) -> Claim:
    kind = thing["kind"]
    if kind not in THEMES[truth["theme"]].kinds and rng.random() < STRANGER_RENAMED:
        kind = _usual_kind(truth["theme"], used, rng)
    fixed = KINDS[kind]
    place = PLACES.index(thing["place"])
    usual = {
        "size": fixed.size if thing["size"] else None,
        "colour": fixed.colour,
        "facing": "left" if thing["facing"] else None,
        "place": PLACES[usual_place(kind, place)],
    }
    values: dict[str, Any] = {"count": thing["count"]}
    for name, value in usual.items():
        true = fixed.colour if name == "colour" and not fixed.dyed else thing[name]
        values[name] = value if true != value and rng.random() < UNUSUAL_MISTOLD else true
    if thing["count"] > 1 and rng.random() < MISCOUNTED:
        values["count"] = 5 - thing["count"] if fixed.flock else 1
    return _mentioned(Claim(kind=kind, **values), rng)


def _invented(theme: str, used: set[str], rng: random.Random) -> Claim:
    """A claim about an absent thing of the theme, with its usual attributes."""
    kind = _usual_kind(theme, used, rng)
    fixed = KINDS[kind]
    count = rng.choices((1, 2, 3), COUNTS[fixed.flock])[0]
    other = "small" if fixed.size == "large" else "large"
    dyes = colours(kind)
    level = LEVELS.index(fixed.level) if rng.random() < USUAL_LEVEL else rng.randrange(3)
    claim = Claim(
        kind=kind,
        count=count,
        size=None if count > 1 else rng.choices((fixed.size, other), (USUAL_SIZE, 1 - USUAL_SIZE))[0],
        colour=rng.choices(list(dyes), list(dyes.values()))[0],
        facing=("left" if rng.random() < USUAL_FACING else "right") if fixed.faces else None,
        place=PLACES[3 * level + rng.randrange(3)],
    )
    return _mentioned(claim, rng)


def _usual_kind(theme: str, used: set[str], rng: random.Random) -> str:
    shares = {kind: share for kind, share in weights(theme).items() if kind not in used}
    kind = rng.choices(list(shares), list(shares.values()))[0]
    used.add(kind)
    return kind


def _mentioned(claim: Claim, rng: random.Random) -> Claim:
    """The claim reduced to the details that a caption mentions."""
    assert claim.kind is not None
    shares = {"size": 0.45, "colour": 0.6 if KINDS[claim.kind].dyed else 0.15, "facing": 0.25, "place": 0.6}
    return claim.without([name for name, share in shares.items() if rng.random() >= share])
