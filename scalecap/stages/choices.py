"""Multiple choice: options listed by letter, and the option that a model chooses."""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

from scalecap.stages import Chosen, ModelClient

LETTERS = string.ascii_uppercase


def list_options(options: Sequence[str]) -> str:
    """`A. first`, `B. second` … one per line. Raises ValueError for more than 26."""
    if len(options) > len(LETTERS):
        raise ValueError(f"expected at most {len(LETTERS)} options, got {len(options)}")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


class Choice(NamedTuple):
    """The option that a model chose."""

    option: str
    """The most probable one; "" if the reply was none of them."""
    p: float | None
    """Its probability among the options; None without an option."""
    mass: float | None
    """Probability of all options together (see `Chosen.mass`); None if the engine can't tell."""


def most_probable(chosen: Chosen, options: Sequence[str]) -> Choice:
    """The option with the largest probability, the first on ties."""
    if not chosen.answered:
        return Choice("", None, chosen.known_mass)
    p = max(chosen.probabilities)
    return Choice(options[chosen.probabilities.index(p)], p, chosen.known_mass)


async def choose_by_letter(client: ModelClient, prompt: str, options: Sequence[str], model: str) -> Choice:
    """The option whose letter is most probable."""
    return most_probable(await client.choose(prompt, LETTERS[: len(options)], model=model), options)


def index_of(answer: Any, options: Sequence[Any]) -> int:
    """The index of the right option, given as its text, its letter (`B`, `(B)`) or its index from 0.

    A number is that of an option if they are numbers themselves.

    Raises:
        ValueError: it is none of them.
    """
    if any(isinstance(option, int | float) for option in options):
        answer, options = str(answer), list(map(str, options))
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
    raise ValueError(f"invalid answer {answer!r:.80}, expected one of {list(options)!r:.200}")
