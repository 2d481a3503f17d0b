"""Text-only lessons: listing, joining, collecting, decomposing, correcting, naming, varying."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from scalecap.scenes.careless import SET_SCENE, careless_caption, careless_claims
from scalecap.scenes.claims import Claim
from scalecap.scenes.grammar import describe, introduce, noun, plainly, set_scene
from scalecap.scenes.kinds import NUMBERS, PLACES
from scalecap.scenes.statements import claim_all, claim_of, claim_place
from scalecap.scenes.themes import colours
from scalecap.scenes.train.lessons import Lesson, Prompts, instructions


def text_alone(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """A random text-only lesson."""
    draws = (joining, listing, collecting, decomposing, correcting, naming, varying)
    return rng.choices(draws, (4, 2, 1, 2, 1, 1, 1))[0](truth, prompts, rng)


def listing(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Instructions for a caption, or for one of its sentences."""
    sentences = careless_caption(truth, rng).replace(". ", ".\n")
    if rng.random() < 0.4:
        sentences = rng.choice(sentences.split("\n"))
    reply = instructions(sentences)
    if not reply:  # a sentence about the ground
        return listing(truth, prompts, rng)
    return Lesson(rng.choice(prompts["questions"])(sentence=sentences), reply)


def joining(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Fuses the sentences of the context and all details, in order, into one text.

    Details are given as one list or as separate object and position information; some are missing, as after a
    check.
    """
    kept = rng.random()  # varies the length: short texts are learnt first
    context = [
        sentence
        for sentence in careless_caption(truth, rng).replace(". ", ".\n").split("\n")
        if rng.random() < max(kept, 0.4)
    ]
    looks = [describe(claim_all(thing)) for thing in truth["things"] if rng.random() < kept]
    places = [describe(claim_place(thing)) for thing in truth["things"] if rng.random() < kept]
    if not context or not looks + places:
        return listing(truth, prompts, rng)
    object_info, position_info = "\n".join(looks), "\n".join(places)
    if rng.random() < 0.8:
        object_info = position_info = "\n".join(looks + places)
    prompt = rng.choice(prompts["fuse"])(
        context="\n".join(context), object_info=object_info, position_info=position_info
    )
    return Lesson(prompt, " ".join(context + looks + places))


def collecting(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Collects appearances or positions from blocks of sentences with their details."""
    blocks, looks, places = [], [], []
    for thing in truth["things"]:
        name = noun(thing["kind"], thing["count"])
        look, place = describe(claim_all(thing)), describe(claim_place(thing))
        lines = [f"Sentence: {introduce(claim_of(thing), rng)}"]
        if rng.random() < 0.9:
            lines.append(f"Details about the {name}: {look}")
            looks.append(look)
        if rng.random() < 0.9:
            lines.append(f"Details about the position of the {name}: {place}")
            places.append(place)
        blocks.append("\n".join(lines))
    role, sentences = rng.choice([("collect_objects", looks), ("collect_positions", places)])
    if not sentences:
        return listing(truth, prompts, rng)
    return Lesson(rng.choice(prompts[role])(blocks="\n".join(blocks)), "\n".join(sentences))


def decomposing(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Decomposes a sentence, an answer or a caption into atomic claims."""
    form = rng.random()
    thing = rng.choice(truth["things"])
    if form < 0.4:
        sentences = _sentences(truth, rng)
        sentences = sentences if form < 0.15 else [rng.choice(sentences)]
    else:
        sentences = [_Sentence(claim_all(thing) if form < 0.7 else claim_place(thing), new=False)]
    reply = "\n".join(dict.fromkeys(text for sentence in sentences for text in sentence.atoms()))
    return Lesson(rng.choice(prompts["claims"])(text=" ".join(each.text for each in sentences)), reply)


def naming(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """The names of the things in a caption, one per line."""
    sentences = _sentences(truth, rng)
    names = {
        each.claim.kind: noun(each.claim.kind, each.claim.count or 1) for each in sentences if each.claim.kind
    }
    reply = "\n".join(name.capitalize() for name in names.values())
    return Lesson(rng.choice(prompts["objects"])(text=" ".join(each.text for each in sentences)), reply)


def correcting(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Removes refuted claims from a caption: single details, or everything about a thing."""
    sentences = _sentences(truth, rng)
    about = [each for each in sentences if each.claim.kind]
    wrong: dict[tuple[str, str], str] = {}
    for each in rng.sample(about, min(len(about), rng.randint(1, 3))):
        assert each.claim.kind is not None
        said = [name for name in ("size", "colour", "facing", "place") if getattr(each.claim, name)]
        if not said or rng.random() < 0.5:
            wrong[each.claim.kind, "kind"] = plainly(each.claim.only(()))
        else:
            name = rng.choice(said)
            wrong[each.claim.kind, name] = describe(each.claim.only([name]), counted=False)
    left = [each.without({name for kind, name in wrong if kind == each.claim.kind}) for each in sentences]
    reply = " ".join(each.text for each in left if each) or "Nothing."
    prompt = rng.choice(prompts["correct"])(
        caption=" ".join(each.text for each in sentences), refuted="\n".join(wrong.values())
    )
    return Lesson(prompt, reply)


def varying(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Alternatives to a wrong sentence: the same with another detail, one per line."""
    sentences = rng.choice([each for each in _sentences(truth, rng) if each.claim.kind])
    others = [sentences._replace(claim=claim).text for claim in variants(sentences.claim)]
    return Lesson(rng.choice(prompts["alternatives"])(text=sentences.text), "\n".join(others))


def variants(claim: Claim, most: int = 8) -> list[Claim]:
    """The claim with one detail changed, likely confusions first."""
    assert claim.kind is not None
    found: list[Claim] = []
    if claim.size:
        found.append(replace(claim, size="small" if claim.size == "large" else "large"))
    if claim.facing:
        found.append(replace(claim, facing="left" if claim.facing == "right" else "right"))
    if claim.colour:
        found += [replace(claim, colour=each) for each in colours(claim.kind) if each != claim.colour]
    if claim.count and not claim.size:
        found += [replace(claim, count=number) for number in NUMBERS if number != claim.count]
    if claim.place:
        row, column = divmod(PLACES.index(claim.place), 3)
        apart = {place: abs(at // 3 - row) + abs(at % 3 - column) for at, place in enumerate(PLACES)}
        near = sorted(apart, key=lambda place: apart[place])[1:]
        found += [replace(claim, place=place) for place in near]
    return found[:most]


class _Sentence(NamedTuple):
    """A sentence of a caption or answer, from which details can be removed."""

    claim: Claim
    new: bool = True
    """Whether it introduces the thing."""
    form: int = 0
    """Seed of the phrasing of an introduction."""

    @property
    def text(self) -> str:
        if self.claim.ground:
            return set_scene(self.claim, random.Random(self.form))
        return introduce(self.claim, random.Random(self.form)) if self.new else describe(self.claim)

    def atoms(self) -> list[str]:
        """Atomic claims, as sentences."""
        return [self.text] if self.claim.ground else atoms(self.claim)

    def without(self, names: set[str]) -> "_Sentence | None":
        """The sentence without these fields; in the plain phrasing if its place was removed."""
        if "kind" in names:
            return None
        claim = self.claim.without(names)
        if not self.new and claim == claim.only(()):
            return None
        return _Sentence(claim, self.new, PLAIN if self.claim.place and not claim.place else self.form)


PLAIN = next(seed for seed in range(99) if random.Random(seed).choice(range(3)) == 0)
"""A seed that selects the first of three phrasings."""


def _sentences(truth: Mapping[str, Any], rng: random.Random) -> list[_Sentence]:
    """The sentences of a careless caption."""
    sentences = (
        [_Sentence(Claim(ground=truth["ground"]), form=rng.randrange(99))] if rng.random() < SET_SCENE else []
    )
    for claim in careless_claims(truth, rng):
        later = {name for name in ("size", "colour", "facing", "place") if rng.random() < 0.4}
        later |= {"facing"}
        sentences.append(_Sentence(claim.without(later), form=rng.randrange(99)))
        rest = claim.only(later)
        if rest != claim.only(()):
            sentences.append(_Sentence(rest, new=False))
    return sentences


def atoms(claim: Claim) -> list[str]:
    """One sentence per fact of a claim, presence and number first."""
    single = [claim.only([name]) for name in ("size", "colour") if getattr(claim, name)]
    single += [replace(claim.only(()), parts=(part,)) for part in claim.parts]
    single += [claim.only([name]) for name in ("facing", "place") if getattr(claim, name)]
    single += [replace(claim.only(()), beside=(other,)) for other in claim.beside]
    return [plainly(claim.only(())), *(describe(each, counted=False) for each in single)]
