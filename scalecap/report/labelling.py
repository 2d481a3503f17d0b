"""Samples the statements that are labelled in the report: one per image, at random."""

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from scalecap.run.folder import Row, checks, statements_digest

MAX_STATEMENTS = 1_000
"""Most statements sampled for each check."""
LARGE_IMAGES = 200
"""The first statements whose images are large, however many rows the page has."""


def draw(
    rows: Sequence[Row],
    seed: int = 0,
    *,
    uncertain: bool = False,
    steps: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    """The statements to label, in their order, for each check whose threshold can be calibrated.

    That is a `verify` step with a P(yes), unless what it keeps decides what is asked next (`adds_to`).

    A random sample shuffles the images and draws one statement of each. With `uncertain`, the least certain
    statement of each image is taken, and the least certain come first; such labels give no guarantee. Failed
    rows are left out.

    Args:
        steps: the run's, as far as they are known.

    Returns:
        {seed, draw, steps: [{step, run, statements: [[row number, row_id, text]]}]}, where `run` is the
        digest of the statements that were sampled from.
    """
    numbered = [(number, row) for number, row in enumerate(rows) if not row.get("error") and "row_id" in row]
    records = [(number, row, dict(checks(row))) for number, row in numbered]
    names = dict.fromkeys(
        step
        for *_, found in records
        for step, scores in found.items()
        if any(isinstance(score.get("p_yes"), int | float) for score in scores)
        and _can_be_calibrated(steps.get(step, {"stage": "verify"}))
    )
    drawn = []
    for step in names:
        rng = random.Random(f"{seed} {step}")
        there = [(number, row["row_id"], found[step]) for number, row, found in records if found.get(step)]
        if uncertain:
            chosen = [(number, id_, min(scores, key=_certainty)) for number, id_, scores in there]
            chosen.sort(key=lambda each: _certainty(each[2]))
        else:
            chosen = [(number, id_, rng.choice(scores)) for number, id_, scores in there]
            rng.shuffle(chosen)
        statements = [[number, id_, score["text"]] for number, id_, score in chosen[:MAX_STATEMENTS]]
        run = statements_digest((row for _, row in numbered), step)
        drawn.append({"step": step, "run": run, "statements": statements})
    return {"seed": seed, "draw": "uncertain" if uncertain else "random", "steps": drawn}


def large(drawn: Mapping[str, Any]) -> set[int]:
    """Numbers of the rows that are labelled first."""
    return {number for step in drawn["steps"] for number, *_ in step["statements"][:LARGE_IMAGES]}


def _can_be_calibrated(step: Mapping[str, Any]) -> bool:
    """See `scalecap.calibration.calibrate`."""
    loops = step.get("adds_to") and step.get("rounds") != 1
    return step.get("stage") == "verify" and not loops


def _certainty(score: Mapping[str, Any]) -> float:
    """Distance of P(yes) from one half; 0 if unanswered."""
    p_yes = score.get("p_yes")
    return abs(p_yes - 0.5) if isinstance(p_yes, int | float) else 0.0
