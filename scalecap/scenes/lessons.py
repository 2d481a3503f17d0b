"""What the tiny model is taught: questions and answers about one scene, and text-only work.

Everything is drawn from the grammar, asked through the prompt templates that a run uses.
Captions are careless on purpose, as captions from the web are: they leave things out, take one
thing for another and expect what is not there. Answers to questions and yes/no checks are clean.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from scalecap.prompts import Template
from scalecap.scenes.claims import Claim, falsify, holds
from scalecap.scenes.grammar import describe, introduce, noun, read, set_scene
from scalecap.scenes.kinds import EXPECTED, KINDS, PLACES
from scalecap.settings import CONF
from scalecap.stages.parse_questions import ASKS

Render = Callable[..., str]
"""A template: keyword variables in, prompt text out."""

ASK = f"{ASKS} the {{}}."
ASK_WHERE = f"{ASKS} the position of the {{}}."

CAPTIONED, PLACED, CHECKED = 0.5, 3.0, 4.0
"""Weights of the tokens of a caption, few of which are certain, of an answer with a place, which is
learnt slowly, and of a check's single token."""


def shipped(role: str, variant: str) -> Template:
    """The prompt in `conf/prompts/<role>/<variant>.yaml`."""
    file = OmegaConf.load(CONF / "prompts" / role / f"{variant}.yaml")
    assert isinstance(file, DictConfig)
    return Template(file[role])


class Lesson(NamedTuple):
    """One prompt with the reply to learn; `weight` scales the loss of the reply's tokens."""

    prompt: str
    reply: str
    weight: float = 1.0


def claim_all(thing: Mapping[str, Any]) -> Claim:
    """How a thing looks. Which way it faces is left out: the small tower sees that too rarely."""
    return Claim(
        kind=thing["kind"],
        count=thing["count"],
        size=thing["size"],
        colour=thing["colour"],
        parts=tuple(thing["parts"]),
    )


def claim_place(thing: Mapping[str, Any]) -> Claim:
    """Where a thing is."""
    return Claim(kind=thing["kind"], count=thing["count"], place=thing["place"])


def careless_caption(truth: Mapping[str, Any], rng: random.Random) -> str:
    """A short caption with gaps and, in about one sentence of five, an error."""
    there = {thing["kind"] for thing in truth["things"]}
    sentences: list[str] = []
    for thing in truth["things"]:
        if sentences and rng.random() < 0.3:
            continue
        claim = Claim(
            kind=thing["kind"],
            count=thing["count"],
            size=thing["size"] if rng.random() < 0.6 else None,
            place=thing["place"] if rng.random() < 0.6 else None,
        )
        twin = KINDS[thing["kind"]].mistaken_for
        if twin not in there and rng.random() < 0.12:
            claim = replace(claim, kind=twin)
        if claim.size and rng.random() < 0.2:
            claim = replace(claim, size="small" if claim.size == "large" else "large")
        if claim.place and rng.random() < 0.15:
            index = PLACES.index(claim.place)
            near = [i for i in range(9) if abs(i // 3 - index // 3) + abs(i % 3 - index % 3) == 1]
            claim = replace(claim, place=PLACES[rng.choice(near)])
        if thing["count"] > 1 and rng.random() < 0.2:
            claim = replace(claim, count=5 - thing["count"])
        sentences.append(introduce(claim, rng))
    if rng.random() < 0.4:
        expected = rng.choice(EXPECTED[truth["ground"]])
        if expected not in there:
            place = rng.choice(PLACES) if rng.random() < 0.5 else None
            sentences.append(introduce(Claim(kind=expected, count=1, place=place), rng))
    if rng.random() < 0.5:
        sentences.insert(0, set_scene(Claim(ground=truth["ground"]), rng))
    return " ".join(sentences)


class Curriculum(NamedTuple):
    """Shares of what statements are about: what is compared in a group of things is learnt last."""

    presence: float
    """Whether a thing is there, its colour, or the ground, and nothing else."""
    single: float
    """Of the others: one detail of a thing that is there, changed in the false one."""


def statements(truth: Mapping[str, Any], rng: random.Random, share: Curriculum) -> tuple[str, str]:
    """A true statement, and the same with one thing changed so that it is false."""
    while True:
        said = _claim(truth, rng, share)
        false = falsify(said.claim, truth, rng, said.changed)
        words = rng.random()
        pair = tuple(said.say(claim, random.Random(words)) for claim in (said.claim, false))
        # Some changes leave no trace in the words ("the cat" of three); the words decide.
        if [_reads_true(text, truth) for text in pair] == [True, False]:
            return pair[0], pair[1]


def _reads_true(text: str, truth: Mapping[str, Any]) -> bool:
    return all(holds(claim, truth) for claim in read(text))


class _Said(NamedTuple):
    """Something true, how to say it, and what to change to make it false (None: anything)."""

    claim: Claim
    say: Callable[[Claim, random.Random], str]
    changed: str | None = None


def _claim(truth: Mapping[str, Any], rng: random.Random, share: Curriculum) -> _Said:
    thing = rng.choice(truth["things"])
    there = Claim(kind=thing["kind"], count=thing["count"])
    if rng.random() < share.presence:
        sort = rng.choice(["presence", "presence", "presence", "colour", "ground"])
        if sort == "ground":
            return _Said(Claim(ground=truth["ground"]), set_scene)
        if sort == "colour":
            return _Said(replace(there, colour=thing["colour"]), _described)
        return _Said(there, introduce)
    if rng.random() < share.single:
        whole = replace(claim_all(thing), place=thing["place"], parts=(rng.choice(thing["parts"]),))
        name = rng.choice([name for name in ("size", "parts", "place", "place") if getattr(whole, name)])
        brought_in = name != "parts" and rng.random() < 0.5
        return _Said(
            replace(there, **{name: getattr(whole, name)}), introduce if brought_in else _described, name
        )
    form = rng.random()
    if form < 0.5:
        size, place = (thing[name] if rng.random() < 0.6 else None for name in ("size", "place"))
        return _Said(replace(there, size=size, place=place), introduce)
    if form < 0.75:
        return _Said(claim_all(thing), _described)
    if form < 0.92:
        return _Said(claim_place(thing), _described)
    return _Said(Claim(ground=truth["ground"]), set_scene)


def _described(claim: Claim, _: random.Random) -> str:
    return describe(claim)


def about_scene(
    truth: Mapping[str, Any],
    prompts: Mapping[str, Sequence[Render]],
    rng: random.Random,
    *,
    checks: int,
    share: Curriculum,
) -> list[Lesson]:
    """Lessons that share one picture: `checks` yes/no questions, of every second one a caption, and
    answers about looks and places of two things."""
    lessons = []
    for _ in range(checks // 2):
        render = rng.choice(prompts["verify"])
        for text, reply in zip(statements(truth, rng, share), ("yes", "no"), strict=True):
            lessons.append(Lesson(render(text=text), reply, CHECKED))
    if rng.random() < 0.5:
        lessons.append(Lesson(rng.choice(prompts["caption"])(), careless_caption(truth, rng), CAPTIONED))
    for thing in rng.sample(truth["things"], 2):
        # A careless caption may have miscounted; the answer says how it is all the same.
        name = noun(thing["kind"], thing["count"] if rng.random() < 0.85 else 3 - min(2, thing["count"]))
        if rng.random() < 0.3:
            lessons.append(Lesson(ASK.format(name), describe(claim_all(thing))))
        lessons.append(Lesson(ASK_WHERE.format(name), describe(claim_place(thing)), PLACED))
    return lessons


def listing(truth: Mapping[str, Any], prompts: Mapping[str, Sequence[Render]], rng: random.Random) -> Lesson:
    """Turn a caption's things into instructions, each once, in order."""
    sentences = careless_caption(truth, rng).replace(". ", ".\n")
    asked: dict[str, str] = {}
    for claim in read(sentences):
        if claim.kind:
            many = claim.count is None and KINDS[claim.kind].plural in sentences.lower()
            asked.setdefault(claim.kind, noun(claim.kind, 2 if many else claim.count or 1))
        if claim.beside:
            asked.setdefault(claim.beside, noun(claim.beside))
    reply = "\n".join(ASK.format(name) for name in asked.values())
    return Lesson(rng.choice(prompts["questions"])(sentence=sentences), reply)


def joining(truth: Mapping[str, Any], prompts: Mapping[str, Sequence[Render]], rng: random.Random) -> Lesson:
    """Fuse: sentences of the context, then all details, in their order and in one text.

    Details are given in one list or as object and position information apart; some are missing, as
    after a check.
    """
    kept = rng.random()  # short texts are copied first, long ones need them
    context = careless_caption(truth, rng).split(". ")
    context = [sentence.rstrip(".") + "." for sentence in context if rng.random() < max(kept, 0.4)]
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


def collecting(
    truth: Mapping[str, Any], prompts: Mapping[str, Sequence[Render]], rng: random.Random
) -> Lesson:
    """Gather, from blocks of sentences with their details, what is said of looks or of places."""
    blocks, looks, places = [], [], []
    for thing in truth["things"]:
        name = noun(thing["kind"], thing["count"])
        look, place = describe(claim_all(thing)), describe(claim_place(thing))
        lines = [f"Sentence: {introduce(Claim(kind=thing['kind'], count=thing['count']), rng)}"]
        if rng.random() < 0.9:
            lines.append(f"Details about the {name}: {look}")
            looks.append(look)
        if rng.random() < 0.9:
            lines.append(f"Details about the position of the {name}: {place}")
            places.append(place)
        blocks.append("\n".join(lines))
    role, told = rng.choice([("collect_objects", looks), ("collect_positions", places)])
    if not told:
        return listing(truth, prompts, rng)
    return Lesson(rng.choice(prompts[role])(blocks="\n".join(blocks)), "\n".join(told))
