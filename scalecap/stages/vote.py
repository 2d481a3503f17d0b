"""Let several checks of the same texts decide together."""

from collections.abc import Mapping, Sequence
from typing import Any

from scalecap.stages import Columns, stage


@stage(side=["scores"])
def vote(checks: Columns, *, at_least: int | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    """Keeps the texts that enough checks keep: `at_least` so many, or all of them when null.

    `checks` names the side columns `scores` of checks that read the same texts, in the same order. Of
    a text that some check kept in part, the least stays. The side column `scores` has {text, p_yes,
    kept, remains, mass, votes}: the least p_yes and mass that a check tells, and each check's verdict.
    """
    if at_least is not None and not 1 <= at_least <= len(checks):
        raise ValueError(f"at_least: {at_least} of {len(checks)} checks: write 1 to {len(checks)}, or null")
    texts = {name: [score["text"] for score in scores] for name, scores in checks.items()}
    (first, reference), *others = texts.items()
    for name, other in others:
        if other != reference:
            raise ValueError(f"{first} and {name} did not check the same texts")
    scores = []
    for told in zip(*checks.values(), strict=True):
        remains = [score.get("remains", score["text"]) for score in told if score["kept"]]
        kept = len(remains) >= (len(checks) if at_least is None else at_least)
        scores.append(
            {
                "text": told[0]["text"],
                "p_yes": _least(told, "p_yes"),
                "kept": kept,
                "remains": min(remains, key=len) if kept else "",
                "mass": _least(told, "mass"),
                "votes": {name: score["kept"] for name, score in zip(checks, told, strict=True)},
            }
        )
    return [score["remains"] for score in scores if score["kept"]], scores


def _least(scores: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return min((score[name] for score in scores if score.get(name) is not None), default=None)
