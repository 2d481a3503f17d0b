"""A row as the report shows it: captions, drafts, checks, answers and parts of the picture."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from scalecap.rows import OUTPUT_COLUMNS
from scalecap.run.folder import WORD, Row, Run, checks
from scalecap.stats import is_part, label, parts
from scalecap.text import segmentation as clauses

NEAR = 0.6
"""Share of a sentence's words that a text must have to be told as its source."""


def numbers(run: Run, row: Row) -> Iterator[tuple[str, float]]:
    """The row's metrics, without their parts."""
    for name, (count, of) in run.metrics(row):
        if of and not is_part(name):
            yield name, round(count / of, 4)


def told(run: Run, row: Row) -> dict[str, Any]:
    """A row as the page shows it: its parts in the order of the columns."""
    steps, scored = run.steps, dict(checks(row))
    final = run.caption_column(row)
    sides = (f"{name}_{side}" for name in scored for side in ("scores", "refuted"))
    ranked = (f"{name}_ranks" for name, step in steps.items() if step.get("stage") == "best_of")
    hidden = {*OUTPUT_COLUMNS, run.image, *sides, *ranked}
    measured = list(numbers(run, row))
    hidden |= {parts(name)[0] for name, _ in measured}
    shown: list[dict[str, Any]] = []
    rest: list[tuple[str, str]] = []
    answered = _answered(steps, scored)
    for column, value in row.items():
        step = steps.get(column, {})
        if column in hidden or value is None:
            continue
        if column == final and (column in steps or not steps) and isinstance(value, str):
            shown.append({"is": "final", "column": column, "texts": origins(value, scored)})
        elif column in answered and _texts(value) and _texts(row.get(answered[column].questions)):
            check = answered[column].check
            checked = {each["text"]: each for each in scored.get(check, [])}
            told_answers = [
                _score(checked[each], steps.get(check, {})) if each in checked else {"text": each}
                for each in value
            ]
            pairs = list(zip(row[answered[column].questions], told_answers, strict=False))
            shown.append({"is": "answers", "column": column, "pairs": pairs})
        elif column in scored and column not in {each.check for each in answered.values()}:
            texts = [_score(each, step) | _instead(each, step, steps, row) for each in scored[column]]
            shown.append({"is": "scored", "column": column, "texts": texts})
        elif _regions(value):
            shown.append({"is": "regions", "column": column, "regions": value})
        elif step.get("stage") == "generate" and (step.get("samples") or step.get("views")) and _texts(value):
            texts = _ranked(column, value, steps, row)
            shown.append({"is": "drafts", "column": column, "texts": texts})
        elif step.get("stage") == "generate" and step.get("image") and isinstance(value, str):
            shown.append({"is": "text", "column": column, "text": value})
        else:
            rest.append((column, value if isinstance(value, str) else _pretty(value)))
    return {
        "name": run.picture_name(row),
        "error": row.get("error"),
        "flags": row.get("flags") or {},
        "numbers": [(label(name), value) for name, value in measured],
        "parts": shown,
        "rest": rest,
    }


def _regions(value: Any) -> bool:
    """Whether it is a column of parts of the picture, at least one of which is there."""
    if not isinstance(value, list) or not any(value):
        return False
    return all(each is None or (isinstance(each, dict) and each.keys() == {"box", "of"}) for each in value)


def _ranked(
    column: str, drafts: Sequence[str], steps: Mapping[str, Mapping[str, Any]], row: Row
) -> list[dict[str, Any]]:
    """Drafts, each with its score and whether it was taken, where a step chose among them."""
    for name, step in steps.items():
        ranks = row.get(f"{name}_ranks")
        if step.get("stage") == "best_of" and step.get("texts") == column and isinstance(ranks, list):
            return [
                dict(rank) for rank in ranks if isinstance(rank, dict) and isinstance(rank.get("text"), str)
            ]
    return [{"text": draft} for draft in drafts]


def _instead(
    score: Mapping[str, Any], step: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]], row: Row
) -> dict[str, str]:
    """The text that a repaired statement stands for, which was refuted."""
    if step.get("stage") != "choose":
        return {}
    each = steps.get(str(step.get("about")).removesuffix("_about"), {}).get("each")
    column = next(iter(each.values()), "") if isinstance(each, Mapping) else ""
    refuted, place = row.get(column), score.get("about")
    if not isinstance(refuted, list) or not isinstance(place, int) or not 0 <= place < len(refuted):
        return {}
    return {"instead": str(refuted[place])}


class _Answers(NamedTuple):
    """Where the questions of a column of answers stand, and the check that read it ("": none)."""

    questions: str
    check: str


def _answered(steps: Mapping[str, Mapping[str, Any]], scored: Mapping[str, Any]) -> dict[str, _Answers]:
    """Columns of answers about the picture, one a question."""
    readers = {str(step.get("texts")): name for name, step in steps.items() if name in scored}
    found: dict[str, _Answers] = {}
    for name, step in steps.items():
        each = step.get("each")
        if step.get("image") and isinstance(each, Mapping) and each:
            found[name] = _Answers(str(next(iter(each.values()))), readers.get(name, ""))
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _score(score: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """A scored text with the reason why it was dropped."""
    found = {name: score[name] for name in ("text", "clauses", "tokens") if score.get(name)}
    found |= {"text": score["text"], "kept": bool(score["kept"])}
    p = score.get("p_yes", score.get("likelihood"))
    if isinstance(p, int | float):
        found["p"] = round(float(p), 3)
    if not score["kept"]:
        found["why"] = _reason(score, step)
    return found


def _reason(score: Mapping[str, Any], step: Mapping[str, Any]) -> str:
    if isinstance(score.get("reason"), str):
        return str(score["reason"])
    if score.get("asked") is False:
        return "not asked about: no request was left"
    threshold = step.get("threshold")
    limit = f" is below {threshold:g}" if isinstance(threshold, int | float) else ""
    if isinstance(score.get("p_yes"), int | float):
        return f"P(yes) {score['p_yes']:.3f}{limit or ' is too low'}"
    if isinstance(score.get("likelihood"), int | float):
        return f"likelihood {score['likelihood']:.2g}{limit or ' is too low'}"
    if isinstance(score.get("mass"), int | float):
        return f"unanswered: the options together have a probability of {score['mass']:.3f}"
    gaps = [each["gap"] for each in score.get("clauses") or [] if isinstance(each.get("gap"), int | float)]
    if gaps:
        return f"largest gap {max(gaps):.2f} does not exceed {threshold if threshold is not None else 0}"
    return "the model did not say yes"


def origins(caption: str, scored: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The caption's sentences, each with the checked text that has the most of its words.

    A sentence is told to come from a text only when that has at least `NEAR` of its words; a kept
    text goes before a dropped one.
    """
    sources = [
        (column, each, set(_words(each["text"]))) for column, scores in scored.items() for each in scores
    ]
    found = []
    for start, end in clauses.sentences(caption):
        part: dict[str, Any] = {"text": caption[start:end]}
        words = set(_words(caption[start:end]))

        def share(
            source: tuple[str, Mapping[str, Any], set[str]], words: set[str] = words
        ) -> tuple[float, bool]:
            return len(words & source[2]) / max(1, len(words)), bool(source[1]["kept"])

        if words and sources:
            best = max(sources, key=share)
            if share(best)[0] >= NEAR:
                part |= {"from": best[0], "source": best[1]["text"], "kept": bool(best[1]["kept"])}
        found.append(part)
    return found


def _words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]


def _pretty(value: Any) -> str:
    if _texts(value):
        return "\n".join(value)
    return json.dumps(value, ensure_ascii=False, indent=1)
