"""The record of one checked text, as checks write it into their side column `scores`."""

from typing import Any, Required, TypedDict


class Score(TypedDict, total=False):
    """What a check (`verify`, `contrast`, `likelihood`, `choose`, `vote`) found about one text."""

    text: Required[str]
    kept: Required[bool]
    remains: str
    """What is left of a text kept in part; missing if it is kept or dropped as a whole."""
    p_yes: float | None
    mass: float | None
    """Probability of yes and no together; null if unknown."""
    likelihood: float | None
    checked: bool
    """False if no request was made about the text; missing otherwise."""
    clauses: list[dict[str, Any]]
    tokens: list[dict[str, Any]]
    votes: dict[str, bool]
    options: list[dict[str, Any]]
    about: int
    """Index of the group of alternatives that the text was chosen from."""


def unchecked_score(text: str) -> Score:
    """The record of a text that no request was made about."""
    return {"text": text, "p_yes": None, "kept": False, "mass": None, "checked": False}


def remaining_text(score: Score) -> str:
    """What a check left of a text that it kept."""
    return score.get("remains", score["text"])
