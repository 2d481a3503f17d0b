"""Claims about a scene: what a sentence says of one thing or of the ground, true or not."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from scalecap.scenes.kinds import EXPECTED, GROUNDS, KINDS, PLACES


@dataclass(frozen=True)
class Claim:
    """What one sentence says. Every field that is not None (or empty) is one fact.

    `kind` is None for a sentence about the ground alone. `count` 1 is said by "a" or "an".
    """

    kind: str | None = None
    count: int | None = None
    size: str | None = None
    colour: str | None = None
    parts: tuple[str, ...] = ()
    facing: str | None = None
    place: str | None = None
    beside: str | None = None
    ground: str | None = None


class Fact(NamedTuple):
    """One thing told: of which sort, about which kind, what, and whether it holds."""

    sort: str
    """object, count, size, colour, part, facing, position, relation or ground."""
    kind: str
    value: str
    true: bool


def facts(claim: Claim, truth: Mapping[str, Any]) -> list[Fact]:
    """Take a claim apart and hold each fact against the truth of the scene.

    Every fact about a thing that is not there is wrong. "A" of a single thing is no fact of
    number; "a" of a group is a wrong one.
    """
    told = []
    if claim.ground is not None:
        told.append(Fact("ground", "", claim.ground, claim.ground == truth["ground"]))
    if claim.kind is None:
        return told
    thing = next((thing for thing in truth["things"] if thing["kind"] == claim.kind), None)
    there = thing is not None
    seen: Mapping[str, Any] = thing or {"count": 1, "next_to": [], "parts": []}
    told.append(Fact("object", claim.kind, "", there))
    if claim.count is not None and (claim.count > 1 or seen["count"] > 1):
        told.append(Fact("count", claim.kind, str(claim.count), there and claim.count == seen["count"]))
    for sort, said, field in (
        ("size", claim.size, "size"),
        ("colour", claim.colour, "colour"),
        ("facing", claim.facing, "facing"),
        ("position", claim.place, "place"),
    ):
        if said is not None:
            told.append(Fact(sort, claim.kind, said, there and said == seen[field]))
    for part in claim.parts:
        told.append(Fact("part", claim.kind, part, there and part in seen["parts"]))
    if claim.beside is not None:
        told.append(Fact("relation", claim.kind, claim.beside, there and claim.beside in seen["next_to"]))
    return told


def everything(truth: Mapping[str, Any]) -> frozenset[Fact]:
    """Every fact that there is to tell of a scene."""
    claims = [Claim(ground=truth["ground"])]
    for thing in truth["things"]:
        names = ("kind", "count", "size", "colour", "facing")
        claims.append(
            Claim(**{n: thing[n] for n in names}, parts=tuple(thing["parts"]), place=thing["place"])
        )
        claims += [Claim(kind=thing["kind"], beside=other) for other in thing["next_to"]]
    return frozenset(fact for claim in claims for fact in facts(claim, truth))


def holds(claim: Claim, truth: Mapping[str, Any]) -> bool:
    """Whether all that the claim says is true."""
    return all(fact.true for fact in facts(claim, truth))


def falsify(claim: Claim, truth: Mapping[str, Any], rng: Any, name: str | None = None) -> Claim:
    """Change one thing that the claim says (its field `name`, else any) into something wrong.

    `rng` (random.Random) chooses.
    """
    there = {thing["kind"] for thing in truth["things"]}
    absent = [kind for kind in KINDS if kind not in there]
    told = [field.name for field in fields(claim) if getattr(claim, field.name) not in (None, ())]
    # What is said of a thing is harder to compare than its name, and wrong as often.
    name = name or rng.choice([*told, *(name for name in told if name not in ("kind", "count"))])
    value: Any
    if name == "kind":
        assert claim.kind is not None
        if rng.random() < 0.35:
            value = KINDS[claim.kind].mistaken_for
        elif rng.random() < 0.3:
            value = rng.choice(EXPECTED[truth["ground"]])
        else:
            value = rng.choice(absent)
        if value in there:
            value = rng.choice(absent)
    elif name == "count":
        value = rng.choice([n for n in (1, 2, 3) if n != claim.count])
    elif name == "size":
        value = "small" if claim.size == "large" else "large"
    elif name == "facing":
        value = "left" if claim.facing == "right" else "right"
    elif name == "place":
        value = rng.choice([place for place in PLACES if place != claim.place])
    elif name == "ground":
        value = rng.choice([ground for ground in GROUNDS if ground != claim.ground])
    elif name == "colour":
        value = rng.choice(sorted({kind.colour for kind in KINDS.values()} - {claim.colour}))
    elif name == "parts":
        assert claim.kind is not None
        other = rng.choice(
            [kind for kind in KINDS.values() if not set(kind.parts) & set(KINDS[claim.kind].parts)]
        )
        value = (rng.choice(other.parts), *claim.parts[1:])
    else:
        neighbours: list[str] = next((t["next_to"] for t in truth["things"] if t["kind"] == claim.kind), [])
        others = [kind for kind in there if kind != claim.kind and kind not in neighbours]
        value = rng.choice(sorted(others)) if others and rng.random() < 0.6 else rng.choice(absent)
    return replace(claim, **{name: value})
