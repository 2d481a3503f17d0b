"""Multiple choice: options by letter, and the letter that a model takes."""

import string
from collections.abc import Sequence
from typing import Any

from scalecap.stages import Ask

LETTERS = string.ascii_uppercase


def listed(options: Sequence[str]) -> str:
    """`A. first`, `B. second` … a line each. ValueError when there are more than letters."""
    if len(options) > len(LETTERS):
        raise ValueError(f"{len(options)} options: there are letters for {len(LETTERS)}")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


async def take(ask: Ask, prompt: str, options: Sequence[str], model: str) -> tuple[str, float]:
    """The option whose letter is likeliest, and its probability among the letters; "" when none is said."""
    chosen = await ask.choose(prompt, LETTERS[: len(options)], model=model)
    p = max(chosen.probabilities)
    return options[chosen.probabilities.index(p)] if p else "", p


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
