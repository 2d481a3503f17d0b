"""View models of a report's rows: captions, drafts, checked texts, answers and image regions, as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Required, TypedDict

from scalecap.rows import OUTPUT_COLUMNS
from scalecap.run.folder import WORD, Row, Run, checks
from scalecap.stats import is_part, label, parts
from scalecap.text.segmentation import sentences

MIN_OVERLAP = 0.6
"""Share of a sentence's words that a text must contain to be shown as its source."""


class TextView(TypedDict, total=False):
    """A text, with its score and verdict where a check read it."""

    text: Required[str]
    p: float
    """P(yes), or the likelihood."""
    kept: bool
    reason: str
    """Why it was dropped."""
    replaces: str
    """The refuted text that this one repairs."""
    clauses: Sequence[Mapping[str, Any]]
    tokens: Sequence[Mapping[str, Any]]


class SentenceView(TypedDict, total=False):
    """A sentence of the final caption, with the checked text that it comes from."""

    text: Required[str]
    source: str
    source_column: str
    kept: bool
    """Whether the check kept the source."""


class Section(TypedDict, total=False):
    """One column of a row; `kind` says which of the other keys are set."""

    kind: Required[Literal["text", "final", "scored", "answers", "drafts", "regions"]]
    column: Required[str]
    text: str
    texts: Sequence[TextView | SentenceView | Mapping[str, Any]]
    pairs: Sequence[tuple[str, TextView]]
    """Questions and answers."""
    regions: Sequence[Mapping[str, Any] | None]


class RowView(TypedDict):
    """A row as the page shows it."""

    name: str
    error: Mapping[str, Any] | None
    flags: Mapping[str, Sequence[str]]
    numbers: Sequence[tuple[str, float]]
    sections: Sequence[Section]
    """In the order of the columns."""
    other: Sequence[tuple[str, str]]
    """All other columns as text."""


def row_metrics(run: Run, row: Row) -> Iterator[tuple[str, float]]:
    """The row's metrics, without their parts."""
    for name, (count, of) in run.metrics(row):
        if of and not is_part(name):
            yield name, round(count / of, 4)


def row_view(run: Run, row: Row) -> RowView:
    """The view of one row of `captions.jsonl`."""
    scores = dict(checks(row))
    side_columns = {f"{name}_{side}" for name in scores for side in ("scores", "refuted")}
    rankings = {f"{name}_ranks" for name, step in run.steps.items() if step.get("stage") == "best_of"}
    metrics = list(row_metrics(run, row))
    hidden = {*OUTPUT_COLUMNS, run.image, *side_columns, *rankings, *(parts(name)[0] for name, _ in metrics)}
    views = _Views(run.steps, row, scores, run.caption_column(row), _answers(run.steps, scores))
    sections, other = [], []
    for column, value in row.items():
        if column in hidden or value is None:
            continue
        if section := views.section(column, value):
            sections.append(section)
        else:
            text = "\n".join(value) if _texts(value) else json.dumps(value, ensure_ascii=False, indent=1)
            other.append((column, value if isinstance(value, str) else text))
    return {
        "name": run.image_name(row),
        "error": row.get("error"),
        "flags": row.get("flags") or {},
        "numbers": [(label(name), value) for name, value in metrics],
        "sections": sections,
        "other": other,
    }


class _Answers(NamedTuple):
    """Where the questions of a column of answers are, and the check that read the answers ("": none)."""

    questions: str
    check: str


@dataclass(frozen=True)
class _Views:
    """Makes the sections of one row."""

    steps: Mapping[str, Mapping[str, Any]]
    row: Row
    scores: Mapping[str, Sequence[Mapping[str, Any]]]
    final: str | None
    """The column of the final caption."""
    answers: Mapping[str, _Answers]

    def section(self, column: str, value: Any) -> Section | None:
        """The section of a column; None for one that is shown as plain text."""
        step = self.steps.get(column, {})
        generated = step.get("stage") == "generate"
        if column == self.final and (column in self.steps or not self.steps) and isinstance(value, str):
            before = list(self.row)[: list(self.row).index(column)]
            made = {name: each for name, each in self.scores.items() if f"{name}_scores" in before}
            return {"kind": "final", "column": column, "texts": origins(value, made)}
        if column in self.answers and _texts(value) and _texts(self.row.get(self.answers[column].questions)):
            return {"kind": "answers", "column": column, "pairs": self._pairs(column, value)}
        if column in self.scores and column not in {each.check for each in self.answers.values()}:
            texts = [self._checked(score, step) for score in self.scores[column]]
            return {"kind": "scored", "column": column, "texts": texts}
        if _regions(value):
            return {"kind": "regions", "column": column, "regions": value}
        if generated and (step.get("samples") or step.get("views")) and _texts(value):
            return {"kind": "drafts", "column": column, "texts": self._drafts(column, value)}
        if generated and step.get("image") and isinstance(value, str):
            return {"kind": "text", "column": column, "text": value}
        return None

    def _pairs(self, column: str, answers: Sequence[str]) -> list[tuple[str, TextView]]:
        questions, check = self.answers[column]
        scores = {each["text"]: each for each in self.scores.get(check, [])}
        step = self.steps.get(check, {})
        views: list[TextView] = [
            _checked_text(scores[each], step) if each in scores else {"text": each} for each in answers
        ]
        return list(zip(self.row[questions], views, strict=False))

    def _checked(self, score: Mapping[str, Any], step: Mapping[str, Any]) -> TextView:
        """A scored text, with the refuted text that it repairs."""
        view = _checked_text(score, step)
        if step.get("stage") == "choose":
            each = self.steps.get(str(step.get("about")).removesuffix("_about"), {}).get("each")
            column = next(iter(each.values()), "") if isinstance(each, Mapping) else ""
            refuted, place = self.row.get(column), score.get("about")
            if isinstance(refuted, list) and isinstance(place, int) and 0 <= place < len(refuted):
                view["replaces"] = str(refuted[place])
        return view

    def _drafts(self, column: str, drafts: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """Drafts, with their scores where a step chose among them."""
        for name, step in self.steps.items():
            ranks = self.row.get(f"{name}_ranks")
            if step.get("stage") == "best_of" and step.get("texts") == column and isinstance(ranks, list):
                return [
                    each for each in ranks if isinstance(each, dict) and isinstance(each.get("text"), str)
                ]
        return [{"text": draft} for draft in drafts]


def _answers(steps: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Any]) -> dict[str, _Answers]:
    """The columns of answers about the image, one for each question."""
    checks_of = {str(step.get("texts")): name for name, step in steps.items() if name in scores}
    found: dict[str, _Answers] = {}
    for name, step in steps.items():
        each = step.get("each")
        if step.get("image") and isinstance(each, Mapping) and each:
            found[name] = _Answers(str(next(iter(each.values()))), checks_of.get(name, ""))
    return found


def _regions(value: Any) -> bool:
    """Whether the value is a list of image regions, at least one of which is not null."""
    if not isinstance(value, list) or not any(value):
        return False
    return all(each is None or (isinstance(each, dict) and each.keys() == {"box", "of"}) for each in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _checked_text(score: Mapping[str, Any], step: Mapping[str, Any]) -> TextView:
    view: TextView = {"text": score["text"], "kept": bool(score["kept"])}
    if score.get("clauses"):
        view["clauses"] = score["clauses"]
    if score.get("tokens"):
        view["tokens"] = score["tokens"]
    p = score.get("p_yes", score.get("likelihood"))
    if isinstance(p, int | float):
        view["p"] = round(float(p), 3)
    if not score["kept"]:
        view["reason"] = _reason(score, step)
    return view


def _reason(score: Mapping[str, Any], step: Mapping[str, Any]) -> str:
    """Why a text was dropped."""
    if score.get("checked") is False:
        empty = not score["text"].strip()
        return f"not checked: {'it is empty' if empty else 'the limit of requests was reached'}"
    if isinstance(score.get("votes"), Mapping):
        against = [name.removesuffix("_scores") for name, kept in score["votes"].items() if not kept]
        return f"not kept by {', '.join(against)}"
    threshold = step.get("threshold")
    for name, value, digits in (
        ("P(yes)", score.get("p_yes"), ".3f"),
        ("likelihood", score.get("likelihood"), ".2g"),
    ):
        if isinstance(value, int | float):
            return f"{name} {_against(value, threshold, digits)}"
    if isinstance(score.get("mass"), int | float):
        return f"unanswered: yes and no together have a probability of only {score['mass']:.3f}"
    gaps = [each["gap"] for each in score.get("clauses") or [] if isinstance(each.get("gap"), int | float)]
    if gaps:
        return f"largest gap {max(gaps):.2f} does not exceed {threshold if threshold is not None else 0}"
    return "the model did not answer yes"


def _against(value: float, threshold: Any, digits: str) -> str:
    """A dropped text's probability, rounded unless it would reach the threshold, and what it lacks."""
    rounded = f"{value:{digits}}"
    if not isinstance(threshold, int | float):
        return f"{rounded} is too low"
    if value >= threshold:  # by `choose`
        return f"{rounded}, but “None of these.” is likelier"
    return f"{rounded if float(rounded) < threshold else value} is below {threshold:g}"


def origins(caption: str, scores: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[SentenceView]:
    """The caption's sentences, each with the checked text that contains most of its words.

    A text counts as the source of a sentence only with at least `MIN_OVERLAP` of its words. Of equally good
    ones, a kept text is preferred. A check that read only texts of an earlier one decides about them.

    Args:
        scores: the records of the checks before the caption, in their order.
    """
    verdicts: dict[tuple[str, str], tuple[str, bool]] = {}
    """By check and text: the check that decided about it, and whether it kept it."""
    for column, each in scores.items():
        own = {score["text"]: (column, bool(score["kept"])) for score in each}
        for earlier in scores:
            if earlier == column:
                break
            if own.keys() <= {text for name, text in verdicts if name == earlier}:
                verdicts |= {(earlier, text): verdict for text, verdict in own.items()}
        verdicts |= {(column, text): verdict for text, verdict in own.items()}
    sources = [(*key, *verdict, set(_words(key[1]))) for key, verdict in verdicts.items()]
    views: list[SentenceView] = []
    for start, end in sentences(caption):
        view: SentenceView = {"text": caption[start:end]}
        words = set(_words(caption[start:end]))

        def overlap(
            source: tuple[str, str, str, bool, set[str]], words: set[str] = words
        ) -> tuple[float, bool]:
            return len(words & source[4]) / max(1, len(words)), source[3]

        if words and sources:
            best = max(sources, key=overlap)
            if overlap(best)[0] >= MIN_OVERLAP:
                column, text, decided, kept, _ = best
                view |= {"source_column": column if kept else decided, "source": text, "kept": kept}
        views.append(view)
    return views


def _words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]
