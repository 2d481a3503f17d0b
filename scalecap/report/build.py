"""`report.html`: each picture with what was said about it, what was dropped and why, and what remained.

    python -m scalecap.report DIR

writes it into the folder of a run. It is one file, to be opened from disk.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from scalecap import clauses
from scalecap.data import OUTPUT
from scalecap.data import Row as DataRow
from scalecap.data.files import public
from scalecap.intervals import by_step, is_part, label, mean, parts
from scalecap.report.folder import MOST, WORD, FolderError, Row, Run, checks
from scalecap.report.labelling import draw
from scalecap.report.page import Block, batches, block, picture_blocks, templates
from scalecap.report.pictures import thumbnails

TOLD = ("rows", "notes", "metrics", "checks", "steps", "errors", "models", "command", "seconds")
"""What the page tells of a summary, where there is one."""
NEAR = 0.6
"""Share of a sentence's words that a text must have to be told as its source."""


def write_report(
    folder: Path, source: Iterable[DataRow] | None = None, *, seed: int = 0, uncertain: bool = False
) -> Path:
    """Writes `report.html` in the folder of a run.

    Args:
        source: the run's data; None opens what the run's config says.
        seed, uncertain: of the statements that are drawn for labelling (`scalecap.report.labelling.draw`).

    Raises:
        FolderError: the folder has no captions.
    """
    run = Run(folder, folder.resolve().name)
    rows = list(islice(run.rows(), MOST))
    if not rows and run.reason_failed:
        raise FolderError(f"the run in {folder} failed: {run.reason_failed}")
    if not rows:
        raise FolderError(f"{folder} has no captions.jsonl with rows: give the folder of a run")
    path = folder / "report.html"
    part = path.with_name("report.html.part")
    template = templates().get_template("report.html.j2")
    told = run.summary.get("rows", {})
    calibrated = calibration(rows)
    drawn = draw(rows, seed, uncertain=uncertain)
    stream = template.stream(
        run=run,
        summary=dict.fromkeys(TOLD) | run.summary | {"command": public(run.summary.get("command", ""))},
        steps=run.steps,
        shown=len(rows),
        total=max(len(rows), told.get("done", 0) + told.get("failed", 0)),
        metrics=by_step(run.summary.get("metrics", {})),
        calibrated=calibrated,
        labelled=drawn if drawn["steps"] else None,
        blocks=[
            *_blocks(run, rows, thumbnails(run, rows, source)),
            block("calibration", list(calibrated.values())),
            block("draw", drawn),
        ],
    )
    with part.open("wb") as file:
        stream.dump(file, encoding="utf-8")
    part.replace(path)
    return path


def _blocks(run: Run, rows: Sequence[Row], pictures: Sequence[bytes | str]) -> Iterator[Block]:
    for number, batch in enumerate(batches(rows)):
        yield block(f"rows-{number}", [told(run, row) for row in batch])
    yield from picture_blocks(pictures)
    yield block("index", index(run, rows))


def calibration(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """By step that asked about labelled statements: for each tenth of P(yes) a point of the plot.

    `x` is their mean P(yes), `y` the share that is true with its 95 % interval over rows,
    `label` their number.
    """
    found: dict[str, list[list[list[tuple[float, bool]]]]] = {}
    for row in rows:
        for column, value in row.items():
            answers = value if column.endswith("_answers") and isinstance(value, list) else []
            asked = [each for each in answers if isinstance(each, dict) and _is_labelled(each)]
            bins = found.setdefault(column.removesuffix("_answers"), [[] for _ in range(10)]) if asked else []
            for at, every in enumerate(bins):
                inside = [each for each in asked if min(9, int(each["p_yes"] * 10)) == at]
                every += [[(float(each["p_yes"]), bool(each["label"])) for each in inside]] if inside else []
    return {step: [_bin(every) for every in bins if every] for step, bins in found.items()}


def _is_labelled(answer: Mapping[str, Any]) -> bool:
    return isinstance(answer.get("p_yes"), int | float) and "label" in answer


def _bin(rows: Sequence[Sequence[tuple[float, bool]]]) -> dict[str, Any]:
    share = mean([(sum(true for _, true in row), len(row)) for row in rows])
    assert share is not None
    said = [p for row in rows for p, _ in row]
    return {"x": sum(said) / len(said), "y": list(share[:3]), "label": f"{len(said):,}"}


def index(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """What rows are filtered and sorted by: `tags` (labels), `numbers` (names), and each row's of both."""
    tags: dict[str, int] = {}
    numbers: dict[str, int] = {}
    told: list[tuple[list[int], dict[int, float]]] = []
    for row in rows:
        own = [tags.setdefault(tag, len(tags)) for tag in _tags(row)]
        values: dict[int, float] = {}
        for name, value in _sortable(run, row):
            values[numbers.setdefault(name, len(numbers))] = value
        told.append((own, values))
    return {
        "tags": list(tags),
        "numbers": list(map(label, numbers)),
        "rows": [[own, [values.get(place) for place in range(len(numbers))]] for own, values in told],
    }


def _tags(row: Row) -> Iterator[str]:
    if error := row.get("error"):
        yield "failed"
        yield f"failed at {error.get('step') or 'row'}: {error.get('kind')}"
    for step, scores in checks(row):
        if scores:
            kept = sum(bool(each["kept"]) for each in scores)
            yield f"{step}: dropped some" if kept < len(scores) else f"{step}: kept all"
            if not kept:
                yield f"{step}: dropped all"
    flags = row.get("flags")
    for step, marks in (flags if isinstance(flags, dict) else {}).items():
        yield from (f"{step}: {mark}" for mark in marks)


def _sortable(run: Run, row: Row) -> Iterator[tuple[str, float]]:
    scores = [each for _, every in checks(row) for each in every]
    if scores:
        yield "dropped share", sum(not each["kept"] for each in scores) / len(scores)
    column = run.caption_column(row)
    if column and isinstance(row[column], str):
        yield "caption length", len(WORD.findall(row[column]))
    yield from _numbers(run, row)


def _numbers(run: Run, row: Row) -> Iterator[tuple[str, float]]:
    """The row's metrics, without their parts."""
    for name, (count, of) in run.metrics(row):
        if of and not is_part(name):
            yield name, round(count / of, 4)


def told(run: Run, row: Row) -> dict[str, Any]:
    """A row as the page shows it: its parts in the order of the columns."""
    steps, scored = run.steps, dict(checks(row))
    final = run.caption_column(row)
    sides = (f"{name}_{side}" for name in scored for side in ("scores", "refuted"))
    hidden = {*OUTPUT, run.image, *sides}
    numbers = list(_numbers(run, row))
    hidden |= {parts(name)[0] for name, _ in numbers}
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
            texts = [_score(each, step) for each in scored[column]]
            shown.append({"is": "scored", "column": column, "texts": texts})
        elif step.get("stage") == "generate" and step.get("image") and isinstance(value, str):
            shown.append({"is": "text", "column": column, "text": value})
        else:
            rest.append((column, value if isinstance(value, str) else _pretty(value)))
    return {
        "name": run.picture_name(row),
        "error": row.get("error"),
        "flags": row.get("flags") or {},
        "numbers": [(label(name), value) for name, value in numbers],
        "parts": shown,
        "rest": rest,
    }


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
    p_yes = score.get("p_yes")
    if isinstance(p_yes, int | float):
        found["p"] = round(float(p_yes), 3)
    if not score["kept"]:
        found["why"] = _reason(score, step)
    return found


def _reason(score: Mapping[str, Any], step: Mapping[str, Any]) -> str:
    if isinstance(score.get("reason"), str):
        return str(score["reason"])
    threshold = step.get("threshold")
    limit = f" is below {threshold:g}" if isinstance(threshold, int | float) else ""
    if isinstance(score.get("p_yes"), int | float):
        return f"P(yes) {score['p_yes']:.3f}{limit or ' is too low'}"
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
