"""The statements that a report's labelling mode shows: drawn at random, one a picture."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from scalecap.run.folder import Row, checks, statements_digest

DRAWN = 1_000
"""Pictures drawn for each check, at most."""
LARGE = 200
"""Of these, the first so many are large on the page, however many rows it has."""


def draw(rows: Sequence[Row], seed: int = 0, *, uncertain: bool = False) -> dict[str, Any]:
    """For each check with a P(yes), which statements are shown, and in what order.

    {seed, draw, steps: [{step, run, statements: [[number of the row, row_id, text]]}]}; `run` is the digest
    of the statements that were drawn from. Failed rows are left out. A random draw takes pictures in random
    order and one of each one's statements; an uncertain one takes the picture and the statement first of
    which the check is least sure, for estimates alone.
    """
    numbered = [(number, row) for number, row in enumerate(rows) if not row.get("error") and "row_id" in row]
    records = [(number, row, dict(checks(row))) for number, row in numbered]
    names = dict.fromkeys(step for *_, found in records for step, scores in found.items() if _asked(scores))
    steps = []
    for step in names:
        dice = random.Random(f"{seed} {step}")
        there = [(number, row["row_id"], found[step]) for number, row, found in records if found.get(step)]
        if uncertain:
            chosen = [(number, id_, min(scores, key=_sure)) for number, id_, scores in there]
            chosen.sort(key=lambda each: _sure(each[2]))
        else:
            chosen = [(number, id_, dice.choice(scores)) for number, id_, scores in there]
            dice.shuffle(chosen)
        statements = [[number, id_, score["text"]] for number, id_, score in chosen[:DRAWN]]
        run = statements_digest((row for _, row in numbered), step)
        steps.append({"step": step, "run": run, "statements": statements})
    return {"seed": seed, "draw": "uncertain" if uncertain else "random", "steps": steps}


def large(drawn: Mapping[str, Any]) -> set[int]:
    """Numbers of the rows whose pictures are labelled first."""
    return {number for step in drawn["steps"] for number, *_ in step["statements"][:LARGE]}


def _asked(scores: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(score.get("p_yes"), int | float) for score in scores)


def _sure(score: Mapping[str, Any]) -> float:
    """How far P(yes) is from one half; what was not answered is not sure at all."""
    p_yes = score.get("p_yes")
    return abs(p_yes - 0.5) if isinstance(p_yes, int | float) else 0.0
