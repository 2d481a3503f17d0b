"""Combine several checks of the same texts by vote."""

from collections.abc import Sequence
from typing import Literal

from scalecap.stages import Columns, stage
from scalecap.stages.scores import Score, remaining_text


@stage(side=["scores"])
def vote(checks: Columns, *, at_least: int | None = None) -> tuple[list[str], list[Score]]:
    """Keeps the texts that enough checks keep: `at_least` of them, or all checks if null.

    `checks` names the side columns `scores` of checks that read the same texts, in the same order. If
    checks kept different parts of a text, the shortest stays. The side column `scores` has {text, p_yes,
    kept, remains, mass, votes}: the lowest p_yes and mass of the checks, and each check's verdict;
    with `checked: false` if none of them checked it.
    """
    if at_least is not None and not 1 <= at_least <= len(checks):
        raise ValueError(f"at_least: expected 1 to {len(checks)} or null, got {at_least}")
    texts = {name: [score["text"] for score in scores] for name, scores in checks.items()}
    (first, reference), *others = texts.items()
    for name, other in others:
        if other != reference:
            raise ValueError(f"{first} and {name} did not check the same texts")
    scores: list[Score] = []
    for votes in zip(*checks.values(), strict=True):
        remains = [remaining_text(score) for score in votes if score["kept"]]
        kept = len(remains) >= (len(checks) if at_least is None else at_least)
        score: Score = {
            "text": votes[0]["text"],
            "p_yes": _lowest(votes, "p_yes"),
            "kept": kept,
            "remains": min(remains, key=len) if kept else "",
            "mass": _lowest(votes, "mass"),
            "votes": {name: score["kept"] for name, score in zip(checks, votes, strict=True)},
        }
        if all(vote.get("checked") is False for vote in votes):
            score["checked"] = False
        scores.append(score)
    return [remaining_text(score) for score in scores if score["kept"]], scores


def _lowest(scores: Sequence[Score], name: Literal["p_yes", "mass"]) -> float | None:
    return min((value for score in scores if (value := score.get(name)) is not None), default=None)
