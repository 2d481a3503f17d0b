"""Pairs of a true and a false statement about a scene that differ in a single detail."""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from scalecap.scenes.claims import Claim, falsify, holds
from scalecap.scenes.grammar import describe, introduce, read, set_scene

DETAIL_WEIGHTS = {"size": 1.0, "colour": 1.0, "parts": 0.5, "count": 1.0, "place": 2.0, "facing": 3.0}
"""Weights of the details that statements are about; that of neighbours is `Curriculum.beside`."""


class Curriculum(NamedTuple):
    """Shares of kinds of statements; relations between things are learnt last."""

    presence: float
    """Share of statements about the presence of a thing or about the ground."""
    single: float
    """Share of the others that have a single detail."""
    beside: float = 2.0
    """Weight of neighbours among the details (see `DETAIL_WEIGHTS`)."""


LATE = Curriculum(presence=0.15, single=0.6)
"""The distribution that a run's checks meet."""


class Pair(NamedTuple):
    """A true statement, and the same made false in one detail."""

    true: str
    false: str
    sort: str
    """The field of `Claim` that was changed."""


def statements(truth: Mapping[str, Any], rng: random.Random, share: Curriculum = LATE) -> Pair:
    """Draws a random pair."""
    while True:
        claim, phrase, name = _claim(truth, rng, share)
        false = falsify(claim, truth, rng, name)
        words = rng.random()
        pair = Pair(phrase(claim, random.Random(words)), phrase(false, random.Random(words)), name)
        # Some changes do not show in the wording ("the cat" of three), so the texts are parsed again.
        if _reads_true(pair.true, truth) and not _reads_true(pair.false, truth):
            return pair


def alternatives(truth: Mapping[str, Any], rng: random.Random, most: int = 4) -> list[str]:
    """Mutually exclusive statements, the true one first: one detail of a thing with several values."""
    while True:
        thing = rng.choice(truth["things"])
        claim, phrase, name = _detail(thing, rng, LATE)
        if name in ("parts", "beside"):
            continue
        claims = [claim]
        for _ in range(3 * most):
            other = falsify(claim, truth, rng, name)
            if other not in claims and len(claims) < most:
                claims.append(other)
        words = rng.random()
        texts = [phrase(each, random.Random(words)) for each in claims]
        if [_reads_true(text, truth) for text in texts] == [True, *[False] * (len(texts) - 1)]:
            return texts


def _reads_true(text: str, truth: Mapping[str, Any]) -> bool:
    return all(holds(claim, truth) for claim in read(text))


class _Statement(NamedTuple):
    """A true claim, the function that phrases it, and the field to falsify."""

    claim: Claim
    phrase: Callable[[Claim, random.Random], str]
    name: str


def _claim(truth: Mapping[str, Any], rng: random.Random, share: Curriculum) -> _Statement:
    thing = rng.choice(truth["things"])
    if rng.random() < share.presence:
        if rng.random() < 0.15:
            return _Statement(Claim(ground=truth["ground"]), set_scene, "ground")
        return _Statement(Claim(kind=thing["kind"], count=thing["count"]), introduce, "kind")
    if rng.random() < share.single:
        return _detail(thing, rng, share)
    return _compound(thing, rng)


def _detail(thing: Mapping[str, Any], rng: random.Random, share: Curriculum) -> _Statement:
    whole = claim_of(thing, "size", "colour", "facing", "place", "parts", "beside")
    whole = replace(whole, parts=(rng.choice(thing["parts"]),))
    if whole.beside:
        whole = replace(whole, beside=(rng.choice(whole.beside),))
    sorts = {**DETAIL_WEIGHTS, "beside": share.beside}
    names = [name for name in sorts if getattr(whole, name)]
    name = rng.choices(names, [sorts[name] for name in names])[0]
    claim = replace(Claim(kind=whole.kind, count=whole.count), **{name: getattr(whole, name)})
    if name == "count" or (name in ("size", "colour", "place") and rng.random() < 0.5):
        return _Statement(claim, introduce, name)
    return _Statement(claim, _described, name)


def _compound(thing: Mapping[str, Any], rng: random.Random) -> _Statement:
    """Several details in one statement."""
    form = rng.random()
    if form < 0.4:
        details = [name for name in ("size", "colour", "place") if thing[name] and rng.random() < 0.6]
        return _Statement(claim_of(thing, *details), introduce, rng.choice(["kind", *details]))
    claim = claim_all(thing) if form < 0.6 else claim_place(thing)
    names = [name for name in (*DETAIL_WEIGHTS, "beside") if name != "count" and getattr(claim, name)]
    return _Statement(claim, _described, rng.choice(names))


def claim_of(thing: Mapping[str, Any], *names: str) -> Claim:
    """The kind and count of a thing with these fields of it."""
    fields = {name: thing[name] for name in names if name not in ("parts", "beside")}
    if "parts" in names:
        fields["parts"] = tuple(thing["parts"])
    if "beside" in names:
        fields["beside"] = tuple(thing["next_to"])
    return Claim(kind=thing["kind"], count=thing["count"], **fields)


def claim_all(thing: Mapping[str, Any]) -> Claim:
    """How a thing looks."""
    return claim_of(thing, "size", "colour", "parts")


def claim_place(thing: Mapping[str, Any]) -> Claim:
    """Which way a thing faces, where it is and what it is next to."""
    return claim_of(thing, "facing", "place", "beside")


def _described(claim: Claim, _: random.Random) -> str:
    return describe(claim)
