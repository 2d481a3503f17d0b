"""Group details by the sentence that mentions their object."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scalecap.stages import Columns, stage
from scalecap.stages.scores import Score, remaining_text


@stage(side=["lines"])
def group_details(
    sentences: list[str], about: list[dict[str, Any]], checks: Columns
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One block per sentence: {sentence, details: [{object, position, text, p_yes}]}.

    `about` is the side column of the questions; `checks` names the side columns `scores` of one check
    of their answers, or of several, each of which read what the one before it kept.

    The side column `lines` is what a prompt shows of them, {text, p_yes}: each sentence that has details,
    "Sentence: …", with these after it, "Details about [the position of] the cat: …".
    """
    blocks: list[dict[str, Any]] = [{"sentence": sentence, "details": []} for sentence in sentences]
    answered = chain_checks(list(checks.values()))
    if len(about) != len(answered):
        raise ValueError(
            f"{len(about)} questions and {len(answered)} checked texts: `checks` must begin with a check of"
            " their answers"
        )
    for question, score in zip(about, answered, strict=True):
        if score is not None:
            detail = {"object": question["object"], "position": question["position"], **score}
            blocks[question["sentence"]]["details"].append(detail)
    return blocks, [line for block in blocks for line in _lines(block)]


def _lines(block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if block["details"]:
        yield {"text": f"Sentence: {block['sentence']}", "p_yes": None}
    for detail in block["details"]:
        where = "the position of " if detail["position"] else ""
        text = f"Details about {where}{detail['object']}: {detail['text']}"
        yield {"text": text, "p_yes": detail["p_yes"]}


def chain_checks(checks: Sequence[Sequence[Score]]) -> list[dict[str, Any] | None]:
    """For each text of the first check, {text, p_yes} after all checks; None if it was dropped.

    Raises:
        ValueError: a check did not read what the one before it kept.
    """
    first, *later = checks
    state = [_kept(score) for score in first]
    for check in later:
        waiting = [place for place, kept in enumerate(state) if kept is not None]
        if len(waiting) != len(check):
            raise ValueError(f"a check kept {len(waiting)} texts and the next one read {len(check)}")
        for place, score in zip(waiting, check, strict=True):
            before, now = state[place], _kept(score)
            if now is not None and now["p_yes"] is None and before is not None:
                now["p_yes"] = before["p_yes"]
            state[place] = now
    return state


def _kept(score: Score) -> dict[str, Any] | None:
    if not score["kept"]:
        return None
    return {"text": remaining_text(score), "p_yes": score.get("p_yes")}
