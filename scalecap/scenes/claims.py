"""Claims about a scene, true or false: the content of a sentence about one thing or the ground."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from scalecap.scenes.kinds import COLOURS, GROUNDS, KINDS, PLACES
from scalecap.scenes.themes import THEMES, colours, usual_place


@dataclass(frozen=True)
class Claim:
    """The content of one sentence. Every field that is not None (or empty) is one fact.

    `kind` is None for a sentence about the ground alone. `count` 1 is expressed by "a" or "an".
    """

    kind: str | None = None
    count: int | None = None
    size: str | None = None
    colour: str | None = None
    parts: tuple[str, ...] = ()
    facing: str | None = None
    place: str | None = None
    beside: tuple[str, ...] = ()
    """Kinds in neighbouring places."""
    ground: str | None = None

    def without(self, names: Collection[str]) -> "Claim":
        """The claim without these fields."""
        nothing: dict[str, Any] = {name: () if name in ("parts", "beside") else None for name in names}
        return replace(self, **nothing)

    def only(self, names: Collection[str]) -> "Claim":
        """The claim with only its kind, count and these fields."""
        return self.without({field.name for field in fields(self)} - {"kind", "count", *names})


class Fact(NamedTuple):
    """One claimed fact and whether it is true."""

    sort: str
    """object, count, size, colour, part, facing, position, relation or ground."""
    kind: str
    value: str
    true: bool


def facts(claim: Claim, truth: Mapping[str, Any]) -> list[Fact]:
    """Splits a claim into facts and checks each against the scene's ground truth.

    Every fact about an absent thing is wrong. The article of a single thing is not a fact about its number;
    that of a group is a wrong one.
    """
    found = []
    if claim.ground is not None:
        found.append(Fact("ground", "", claim.ground, claim.ground == truth["ground"]))
    if claim.kind is None:
        return found
    thing = next((thing for thing in truth["things"] if thing["kind"] == claim.kind), None)
    there = thing is not None
    seen: Mapping[str, Any] = thing or {"count": 1, "next_to": [], "parts": []}
    found.append(Fact("object", claim.kind, "", there))
    if claim.count is not None and (claim.count > 1 or seen["count"] > 1):
        found.append(Fact("count", claim.kind, str(claim.count), there and claim.count == seen["count"]))
    for sort, said, field in (
        ("size", claim.size, "size"),
        ("colour", claim.colour, "colour"),
        ("facing", claim.facing, "facing"),
        ("position", claim.place, "place"),
    ):
        if said is not None:
            found.append(Fact(sort, claim.kind, said, there and said == seen[field]))
    for part in claim.parts:
        found.append(Fact("part", claim.kind, part, there and part in seen["parts"]))
    for other in claim.beside:
        found.append(Fact("relation", claim.kind, other, there and other in seen["next_to"]))
    return found


def everything(truth: Mapping[str, Any]) -> frozenset[Fact]:
    """All true facts about a scene."""
    claims = [Claim(ground=truth["ground"])]
    for thing in truth["things"]:
        names = ("kind", "count", "size", "colour", "facing")
        claims.append(
            Claim(
                **{n: thing[n] for n in names},
                parts=tuple(thing["parts"]),
                place=thing["place"],
                beside=tuple(thing["next_to"]),
            )
        )
    return frozenset(fact for claim in claims for fact in facts(claim, truth))


def holds(claim: Claim, truth: Mapping[str, Any]) -> bool:
    """Whether all facts of the claim are true."""
    return all(fact.true for fact in facts(claim, truth))


def falsify(claim: Claim, truth: Mapping[str, Any], rng: Any, name: str | None = None) -> Claim:
    """Replaces one field of the claim (`name`, else a random one) by a wrong value.

    Usual values and kinds that look alike are more likely. `rng` is a random.Random.
    """
    found = [field.name for field in fields(claim) if getattr(claim, field.name) not in (None, ())]
    # Attributes are harder to verify than kinds, so they are chosen more often.
    name = name or rng.choice([*found, *(name for name in found if name not in ("kind", "count"))])
    return replace(claim, **{name: _wrong(claim, truth, rng, name)})


def _wrong(claim: Claim, truth: Mapping[str, Any], rng: Any, name: str) -> Any:
    if name == "count":
        return rng.choice([n for n in (1, 2, 3) if n != claim.count])
    if name == "size":
        return "small" if claim.size == "large" else "large"
    if name == "facing":
        return "left" if claim.facing == "right" else "right"
    if name == "ground":
        return rng.choice([ground for ground in GROUNDS if ground != claim.ground])
    if name == "kind":
        return _wrong_kind(claim, truth, rng)
    assert claim.kind is not None
    if name == "place":
        return rng.choice(_wrong_places(claim, truth))
    if name == "colour":
        usual = [colour for colour in colours(claim.kind) if colour != claim.colour]
        return rng.choice(usual or [colour for colour in COLOURS if colour != claim.colour])
    if name == "parts":
        own = set(KINDS[claim.kind].parts)
        other = rng.choice([kind for kind in KINDS.values() if not set(kind.parts) & own])
        return (rng.choice(other.parts), *claim.parts[1:])
    assert name == "beside"
    near: list[str] = next((t["next_to"] for t in truth["things"] if t["kind"] == claim.kind), [])
    there = sorted({t["kind"] for t in truth["things"]} - {claim.kind, *near})
    wrong = rng.choice(there) if there and rng.random() < 0.7 else _absent(truth, rng)
    return tuple(rng.sample([wrong, *claim.beside[1:]], len(claim.beside)))


def _wrong_kind(claim: Claim, truth: Mapping[str, Any], rng: Any) -> str:
    """A kind that looks alike, that is usual in the theme, or any other absent one."""
    assert claim.kind is not None
    there = {thing["kind"] for thing in truth["things"]}
    twin = KINDS[claim.kind].mistaken_for
    if rng.random() < 0.3 and twin not in there:
        return twin
    return _absent(truth, rng)


def _absent(truth: Mapping[str, Any], rng: Any) -> str:
    there = {thing["kind"] for thing in truth["things"]}
    usual = [kind for kind in THEMES[truth["theme"]].kinds if kind not in there]
    chosen: str = rng.choice(usual if rng.random() < 0.5 else [kind for kind in KINDS if kind not in there])
    return chosen


def _wrong_places(claim: Claim, truth: Mapping[str, Any]) -> list[str]:
    """All wrong places; occupied ones and the usual place of the kind are repeated."""
    assert claim.kind is not None
    taken = [thing["place"] for thing in truth["things"]]
    places = [*PLACES, *taken]
    if claim.place is not None:
        places.append(PLACES[usual_place(claim.kind, PLACES.index(claim.place))])
    return [place for place in places if place != claim.place]
