"""What the tiny model is taught about an image: prompts with the replies to learn.

Everything is drawn from the grammar and asked through the prompt templates that a run uses. Captions are
careless on purpose; answers, checks, choices and lists are clean.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from scalecap.config.settings import CONF
from scalecap.scenes.careless import careless_caption
from scalecap.scenes.grammar import describe, introduce, noun, read
from scalecap.scenes.kinds import GROUNDS, PLACES
from scalecap.scenes.statements import (
    Curriculum,
    alternatives,
    claim_all,
    claim_of,
    claim_place,
    statements,
)
from scalecap.stages.choices import LETTERS, listed
from scalecap.stages.choose import NONE
from scalecap.stages.parse_questions import ASKS
from scalecap.text.templates import Template

Render = Callable[..., str]
"""A template: keyword variables in, prompt text out."""
Prompts = Mapping[str, Sequence[Render]]
"""Templates by role, those asked more often repeated."""

ASK = f"{ASKS} the {{}}."
ASK_WHERE = f"{ASKS} the position of the {{}}."
NOTHING_ELSE = "None."

CAPTIONED, PLACED, LISTED, CHECKED = 0.5, 2.0, 2.5, 4.0
"""Weights of the tokens of a caption, few of which are certain, of an answer with a place, of a list of
verdicts, and of the single token of a check or choice."""


def shipped(role: str, variant: str) -> Template:
    """The prompt in `conf/prompts/<role>/<variant>.yaml`."""
    file = OmegaConf.load(CONF / "prompts" / role / f"{variant}.yaml")
    assert isinstance(file, DictConfig)
    return Template(file[role])


class Lesson(NamedTuple):
    """One prompt with the reply to learn."""

    prompt: str
    reply: str
    weight: float = 1.0
    """Scales the loss of the reply's tokens."""
    judged: tuple[tuple[str, bool], ...] = ()
    """Statements in the prompt, in order, and whether each is true."""


class Mix(NamedTuple):
    """How many lessons of each sort share an image; a fraction is a chance."""

    checks: int = 8
    caption: float = 0.5
    looks: float = 0.6
    places: float = 1.5
    verdicts: float = 0.6
    choice: float = 0.6
    missed: float = 0.35
    name: float = 0.25
    region: float = 0.15
    structured: float = 0.1


MIX = Mix()


def about_scene(
    truth: Mapping[str, Any], prompts: Prompts, rng: random.Random, share: Curriculum, mix: Mix = MIX
) -> list[Lesson]:
    """Lessons that share one image."""
    lessons: list[Lesson] = []
    for _ in range(mix.checks // 2):
        lessons += check(truth, prompts, rng, share)
    for draw, times in (
        (caption, mix.caption),
        (looks, mix.looks),
        (place, mix.places),
        (choice, mix.choice),
        (missed, mix.missed),
        (name_one, mix.name),
        (region, mix.region),
        (structured, mix.structured),
    ):
        lessons += [draw(truth, prompts, rng) for _ in range(_sample_count(times, rng))]
    lessons += [verdicts(truth, prompts, rng, share) for _ in range(_sample_count(mix.verdicts, rng))]
    return lessons


def without_image(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """A caption or answer as it would be with the image, so that its loss is that of the prior."""
    return rng.choices((caption, looks, place), (0.5, 0.2, 0.3))[0](truth, prompts, rng)


def _sample_count(expected: float, rng: random.Random) -> int:
    return int(expected) + (rng.random() < expected % 1)


def check(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random, share: Curriculum) -> list[Lesson]:
    """Yes/no about a true statement, and about the same with one thing wrong."""
    render = rng.choice(prompts["verify"])
    pair = statements(truth, rng, share)
    return [
        Lesson(render(text=text), reply, CHECKED, ((text, reply == "yes"),))
        for text, reply in ((pair.true, "yes"), (pair.false, "no"))
    ]


def caption(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """The first caption, careless."""
    return Lesson(rng.choice(prompts["caption"])(), careless_caption(truth, rng), CAPTIONED)


def looks(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """How a thing looks."""
    thing = rng.choice(truth["things"])
    return Lesson(ASK.format(_noun_for(thing, rng)), describe(claim_all(thing)))


def place(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Where a thing is, which way it faces and what it is next to."""
    thing = rng.choice(truth["things"])
    return Lesson(ASK_WHERE.format(_noun_for(thing, rng)), describe(claim_place(thing)), PLACED)


def _noun_for(thing: Mapping[str, Any], rng: random.Random) -> str:
    """Its name; a careless caption may have miscounted, the answer says how it is all the same."""
    count = thing["count"]
    return noun(thing["kind"], count if rng.random() < 0.85 else 3 - min(2, count))


def verdicts(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random, share: Curriculum) -> Lesson:
    """Several statements checked in one request, a line each."""
    drawn = []
    for _ in range(rng.randint(2, 8)):
        pair = statements(truth, rng, share)
        true = rng.random() < 0.5
        drawn.append((pair.true if true else pair.false, true))
    lines = "\n".join(f"{number}. {text}" for number, (text, _) in enumerate(drawn, 1))
    reply = "\n".join(f"{number}. {'yes' if true else 'no'}" for number, (_, true) in enumerate(drawn, 1))
    return Lesson(rng.choice(prompts["verify_batch"])(texts=lines), reply, LISTED, tuple(drawn))


def choice(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """The true one of statements that exclude each other, by its letter; the last is that none is true."""
    first, *others = alternatives(truth, rng, most=rng.randint(3, 8))
    statements = [(text, False) for text in others]
    if rng.random() < 0.75 or len(others) < 2:
        statements.insert(rng.randint(0, len(others)), (first, True))
    right = next((at for at, (_, true) in enumerate(statements) if true), len(statements))
    options = listed([text for text, _ in statements] + [NONE])
    return Lesson(rng.choice(prompts["choose"])(options=options), LETTERS[right], CHECKED, tuple(statements))


def missed(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """What else is there, given sentences about some of the things, or their names."""
    things = truth["things"]
    known = rng.sample(things, rng.randint(0, len(things)))
    if rng.random() < 0.5:
        known_texts = [introduce(claim_of(thing, *rng.choice(((), ("place",)))), rng) for thing in known]
    else:
        known_texts = [noun(thing["kind"], thing["count"]) for thing in known]
    rest = [introduce(claim_of(thing, "place"), rng) for thing in things if thing not in known]
    reply = " ".join(rest) or NOTHING_ELSE
    return Lesson(rng.choice(prompts["missed"])(known="\n".join(known_texts)), reply)


def name_one(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """Any one thing's name; its likelihood is how sure the model is that there is one."""
    return Lesson(rng.choice(prompts["name_one"])(), title(rng.choice(truth["things"])))


def title(thing: Mapping[str, Any]) -> str:
    """`Cat` or `Cats`."""
    return noun(thing["kind"], thing["count"]).capitalize()


def region(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """The box of the place, in thousandths, that a sentence about one thing is about."""
    thing = rng.choice(truth["things"])
    row, column = divmod(PLACES.index(thing["place"]), 3)
    box = [round(1000 * edge / 3) for edge in (column, row, column + 1, row + 1)]
    names = [name for name in ("size", "colour", "place") if thing[name] and rng.random() < 0.4]
    text = introduce(claim_of(thing, *names), rng) if rng.random() < 0.6 else describe(claim_all(thing))
    return Lesson(rng.choice(prompts["region"])(text=text), json.dumps({"box": box}))


def structured(truth: Mapping[str, Any], prompts: Prompts, rng: random.Random) -> Lesson:
    """The caption as JSON."""
    objects = [
        {
            "name": thing["kind"],
            "count": thing["count"],
            "attributes": [word for word in (thing["size"], thing["colour"]) if word],
            "place": thing["place"],
        }
        for thing in truth["things"]
    ]
    reply = json.dumps({"setting": GROUNDS[truth["ground"]], "objects": objects})
    return Lesson(rng.choice(prompts["structured"])(), reply)


def instructions(text: str) -> str:
    """Instructions to describe each thing of a text, each once, in order."""
    names: dict[str, str] = {}
    for sentence in text.split("\n"):
        for claim in read(sentence):
            if claim.kind:
                many = (claim.count or 1) > 1 or noun(claim.kind, 2) in sentence.lower().rstrip(".").split()
                names.setdefault(claim.kind, noun(claim.kind, 2 if many else 1))
            for other in claim.beside:
                names.setdefault(other, noun(other))
    return "\n".join(ASK.format(name) for name in names.values())
