"""Multiple choice: options by letter, and the letter that a model takes."""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from scalecap.stages import Chosen, ModelClient

LETTERS = string.ascii_uppercase


def listed(options: Sequence[str]) -> str:
    """`A. first`, `B. second` … a line each. ValueError when there are more than letters."""
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options: there are letters for {len(LETTERS)}")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


class Taken(NamedTuple):
    """What a model takes of several options."""

    option: str
    """The likeliest; "" when it said none of them."""
    p: float | None
    """Its probability among the options; None with no option."""
    mass: float | None
    """That of all options together (see `Chosen.mass`); None where an engine can't tell it."""


def likeliest(chosen: Chosen, options: Sequence[str]) -> Taken:
    """The option that has the largest probability, of equal ones the first."""
    if not chosen.answered:
        return Taken("", None, chosen.known_mass)
    p = max(chosen.probabilities)
    return Taken(options[chosen.probabilities.index(p)], p, chosen.known_mass)


async def take(client: ModelClient, prompt: str, options: Sequence[str], model: str) -> Taken:
    """The option whose letter is likeliest."""
    return likeliest(await client.choose(prompt, LETTERS[: len(options)], model=model), options)


def find(answer: Any, options: Sequence[str]) -> int:
    """The index of the right option, given as its text, its letter (`B`, `(B)`) or its index from 0.

    Raises ValueError when it is none of them.
    """
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    if isinstance(answer, int):
        if 0 <= answer < len(options):
            return answer
    elif isinstance(answer, str):
        plain = [option.strip().casefold() for option in options]
        if answer.strip().casefold() in plain:
            return plain.index(answer.strip().casefold())
        letter = answer.strip().strip("().:").upper()
        if len(letter) == 1 and letter in LETTERS[: len(options)]:
            return LETTERS.index(letter)
    raise ValueError(f"the answer {answer!r:.80} is none of the options {list(options)!r:.200}")
