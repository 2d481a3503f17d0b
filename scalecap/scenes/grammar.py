"""The grammar of the world: renders claims as sentences, and parses sentences into claims."""

import re
from typing import Any

from scalecap.scenes.claims import Claim
from scalecap.scenes.kinds import COLOURS, GROUNDS, KINDS, NUMBERS, PLACES

_NOUNS = {noun: kind.name for kind in KINDS.values() for noun in (kind.name, kind.plural)}
_COUNTS = {word: number for number, word in NUMBERS.items()}


def noun(kind: str, count: int = 1) -> str:
    """`cat` or `cats`."""
    return KINDS[kind].plural if count > 1 else KINDS[kind].name


def _phrase(claim: Claim) -> str:
    """`a small red car`, `two cats`."""
    assert claim.kind is not None
    count = claim.count or 1
    words = [word for word in (claim.size, claim.colour, noun(claim.kind, count)) if word]
    if count > 1:
        return " ".join([NUMBERS[count], *words])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def plainly(claim: Claim) -> str:
    """A sentence that introduces a thing, with the count, size, colour and place of the claim."""
    be = "are" if (claim.count or 1) > 1 else "is"
    return f"There {be} {_phrase(claim)}{f' {claim.place}' if claim.place else ''}."


def introduce(claim: Claim, rng: Any) -> str:
    """Like `plainly`, in a random phrasing."""
    phrase = _phrase(claim)
    be = "are" if (claim.count or 1) > 1 else "is"
    place = f" {claim.place}" if claim.place else ""
    forms = [plainly(claim), f"The picture shows {phrase}{place}.", f"I can see {phrase}{place}."]
    if place:
        forms += [f"{_capital(phrase)} {be}{place}.", f"{_capital(phrase)} can be seen{place}."]
    return str(rng.choice(forms))


def set_scene(claim: Claim, rng: Any) -> str:
    """A sentence about the ground."""
    assert claim.ground is not None
    words = GROUNDS[claim.ground]
    return str(
        rng.choice([f"The scene is {words}.", f"The picture is set {words}.", f"Everything is {words}."])
    )


def describe(claim: Claim, *, counted: bool = True) -> str:
    """A sentence with all claims about a thing that was introduced before: appearance, then place.

    Args:
        counted: "the two cats" rather than "the cats".
    """
    assert claim.kind is not None
    many = (claim.count or 1) > 1
    be, have = ("are", "have") if many else ("is", "has")
    looks = [word for word in (claim.size, claim.colour) if word]
    clauses = [f"{be} {' and '.join(looks)}"] if looks else []
    if claim.parts:
        clauses.append(f"{have} {' and '.join(claim.parts)}")
    if claim.facing:
        clauses.append(f"{be} facing {claim.facing}")
    where = [word for word in (claim.place, _next_to(claim.beside)) if word]
    if where:
        clauses.append(f"{be} {', '.join(where)}")
    number = f"{NUMBERS[claim.count]} " if claim.count and many and counted else ""
    subject = f"The {number}{noun(claim.kind, 2 if many else 1)}"
    if len(clauses) > 2:
        return f"{subject} {', '.join(clauses[:-1])}, and {clauses[-1]}."
    return f"{subject} {' and '.join(clauses)}."


def _next_to(kinds: tuple[str, ...]) -> str | None:
    return f"next to {' and '.join(f'the {kind}' for kind in kinds)}" if kinds else None


_PARTS = sorted({part for kind in KINDS.values() for part in kind.parts}, key=len, reverse=True)
_PART = re.compile("|".join(rf"\b{re.escape(part)}\b" for part in _PARTS))
_PLACE = re.compile("|".join(rf"\b{re.escape(place)}\b" for place in sorted(PLACES, key=len, reverse=True)))
_GROUND = re.compile(
    r"\bon (?P<a>grass|sand|snow)\b|\bat (?P<b>sea|night)\b"
    r"|\bagainst a (?P<c>brick) wall\b|\bon a wooden (?P<d>floor)\b"
)
_FACING = re.compile(r"\b(?:facing|faces|face) (left|right)\b")
_ONE = rf"(?:(?:the|an?|two|three) )?(?:\w+ ){{0,2}}?(?:{'|'.join(_NOUNS)})\b"
_BESIDE = re.compile(rf"\bnext to {_ONE}(?: and {_ONE})*")
_WORD = re.compile(r"[a-z]+|[,;:]")


def read(text: str) -> list[Claim]:
    """Parses a caption into claims, one per thing and sentence."""
    return [claim for claims in sentences(text) for claim in claims]


def sentences(text: str) -> list[list[Claim]]:
    """Parses each sentence into claims; an empty list for a sentence that can't be parsed.

    A pronoun at the start of a sentence refers to the last thing. Arbitrary text never raises.
    """
    result: list[list[Claim]] = []
    last: str | None = None
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", text.lower()):
        if not re.search(r"\w", sentence):
            continue
        found = _read_sentence(sentence, last)
        result.append(found)
        last = next((claim.kind for claim in found if claim.kind), last)
    return result


def _read_sentence(sentence: str, last: str | None) -> list[Claim]:
    parts: list[str] = []
    sentence = _PART.sub(lambda match: parts.append(match.group()) or " ", sentence)  # type: ignore[func-returns-value]
    facing = _FACING.search(sentence)
    sentence = _FACING.sub(" ", sentence)
    beside = _BESIDE.search(sentence)
    others = [_NOUNS[word] for word in _WORD.findall(beside.group()) if word in _NOUNS] if beside else []
    sentence = _BESIDE.sub(" ", sentence)
    place = _PLACE.search(sentence)
    sentence = _PLACE.sub(" ", sentence)
    ground = _GROUND.search(sentence)
    sentence = _GROUND.sub(" ", sentence)

    things: list[dict[str, Any]] = []
    words = _WORD.findall(sentence)
    if words and words[0] in ("it", "they") and last:
        things.append({"kind": last})
    pending: dict[str, Any] = {}
    for word in words:
        if word in _NOUNS:
            things.append({"kind": _NOUNS[word], **pending})
            pending = {}
        elif word in ("a", "an"):
            pending = {"count": 1}
        elif word == "the":
            pending = {}
        elif word in _COUNTS:
            pending["count"] = _COUNTS[word]
        elif word in ("small", "large"):
            pending["size"] = word
        elif word in COLOURS:
            pending["colour"] = word
        elif word not in ("and", "very") and things:
            things[-1].update(pending)  # "is small and brown, …" describes the previous thing
            pending = {}
    if things:
        things[-1].update(pending)
        subject = things[0]
        subject["parts"] = tuple(parts)
        subject["facing"] = facing.group(1) if facing else None
        subject["place"] = place.group() if place else None
        subject["beside"] = tuple(dict.fromkeys(others))
    claims = [Claim(**thing) for thing in things]
    if ground:
        claims.append(Claim(ground=next(group for group in ground.groups() if group)))
    return claims
