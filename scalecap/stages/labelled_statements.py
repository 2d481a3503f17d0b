"""Read labelled statements from the data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from scalecap.stages import Columns, ModelClient, stage
from scalecap.text.segmentation import sentences
from scalecap.text.templates import Template

Verdict = Literal["yes", "no", "unsure"]
_BAD_LAST: tuple[Verdict, ...] = ("yes", "unsure", "no")


@stage(side=["verdicts"])
class LabelledStatements:
    """Reads labelled statements from columns of the data, each with its verdict: yes, no or unsure.

    `text` and `label` name the columns of a statement and its label, or of two lists of equal length; without
    `label`, `text` is a list of {text, label}. `right`, `wrong` and `unsure` list the labels with each
    meaning, ignoring case.

    With `tokens`, a column of the text's words in order, `label` has one label per word; with `tags`, text
    between `<tags>` and `</tags>` is labelled no. The text is then split into sentences; a sentence is no if
    any of its words is, else unsure if any is.

    `statement` is a template for the statement to check, given the `text`. The side column `verdicts` has
    one verdict per statement.
    """

    role = None
    variables: ClassVar[dict[str, tuple[str, ...]]] = {"statement": ("text",)}

    def __init__(
        self,
        *,
        text: str,
        label: str | None = None,
        tokens: str | None = None,
        tags: str | None = None,
        statement: Template | None = None,
        right: list[Any] | None = None,
        wrong: list[Any] | None = None,
        unsure: list[Any] | None = None,
    ) -> None:
        if tags is not None and (tokens is not None or label is not None):
            raise ValueError("tags says where the text is wrong: leave label and tokens out")
        if tokens is not None and label is None:
            raise ValueError("tokens needs label: the column with a label for each of them")
        self.text, self.label, self.tokens = text, label, tokens
        self.tag = re.compile(rf"<(/?){re.escape(tags)}>", re.I) if tags is not None else None
        self.statement = statement or Template("{{ text }}")
        self.verdicts: dict[str, Verdict] = {}
        lists: dict[Verdict, list[Any]] = {"yes": right or [], "no": wrong or [], "unsure": unsure or []}
        for verdict, labels in lists.items():
            for each in map(_spelled, labels):
                if self.verdicts.setdefault(each, verdict) != verdict:
                    raise ValueError(
                        f"the label {each!r} is in two of right, wrong and unsure: give both lists, e.g."
                        " labels.right=[0] labels.wrong=[1]"
                    )

    async def __call__(self, client: ModelClient, *, columns: Columns) -> tuple[list[str], list[str]]:
        found = self._spans(columns) if self.tag or self.tokens else self._statements(columns)
        texts: dict[str, str] = {}
        for text, verdict in found:
            if not text.strip():
                raise ValueError(f"column {self.text!r} has an empty statement: remove it and its label")
            stated = self.statement.render(text=text)
            if texts.setdefault(stated, verdict) != verdict:
                raise ValueError(
                    f"column {self.text!r} has a statement twice, labelled {texts[stated]} and {verdict}:"
                    f" {stated!r:.80}; keep one of them"
                )
        return list(texts), list(texts.values())

    def _statements(self, columns: Mapping[str, Any]) -> list[tuple[str, Verdict]]:
        text = columns[self.text]
        if self.label is None:
            records = _list(text, self.text, "a list of {text, label}, or labels.label=COLUMN")
            for number, each in enumerate(records):
                if not isinstance(each, Mapping) or not {"text", "label"} <= set(each):
                    raise ValueError(
                        f"column {self.text!r}, item {number}: expected {{text, label}}, got {each!r:.80};"
                        " name the column of labels with labels.label=COLUMN"
                    )
            texts, labels = [each["text"] for each in records], [each["label"] for each in records]
        elif isinstance(text, str):
            texts, labels = [text], [columns[self.label]]
        else:
            texts = _list(text, self.text, "a text or a list of texts")
            labels = _list(columns[self.label], self.label, "a list with one label per statement")
            self._same_length(texts, self.text, labels)
        for number, each in enumerate(texts):
            if not isinstance(each, str):
                raise ValueError(f"column {self.text!r}, item {number}: expected a text, got {each!r:.80}")
        return [(each, self._verdict(label)) for each, label in zip(texts, labels, strict=True)]

    def _spans(self, columns: Mapping[str, Any]) -> list[tuple[str, Verdict]]:
        """The sentences of a text of which parts are labelled."""
        text = columns[self.text]
        if not isinstance(text, str):
            raise ValueError(f"column {self.text!r}: expected a text, got {text!r:.80}")
        if self.tag:
            text, marked = self._untagged(text, self.tag)
        else:
            marked = self._tokens(text, columns)
        found: list[tuple[str, Verdict]] = []
        for start, end in sentences(text):
            if sentence := text[start:end].strip():
                inside = [v for a, b, v in marked if text[max(a, start) : min(b, end)].strip()]
                found.append((sentence, max(inside, key=_BAD_LAST.index, default="yes")))
        # Of two equal sentences one may be labelled where the other is not.
        worst: dict[str, Verdict] = {}
        for sentence, verdict in found:
            worst[sentence] = max(worst.get(sentence, verdict), verdict, key=_BAD_LAST.index)
        return list(worst.items())

    def _untagged(self, text: str, tag: re.Pattern[str]) -> tuple[str, list[tuple[int, int, Verdict]]]:
        """The text without its tags, and the spans between them."""
        clean, at, opened = "", 0, None
        marked: list[tuple[int, int, Verdict]] = []
        for found in tag.finditer(text):
            clean += text[at : found.start()]
            at = found.end()
            closes = bool(found[1])
            if closes == (opened is None):
                what = "is closed without being opened" if closes else "is opened twice"
                raise ValueError(f"column {self.text!r}: {found[0]} at character {found.start()} {what}")
            if opened is not None:
                marked.append((opened, len(clean), "no"))
            opened = None if closes else len(clean)
        if opened is not None:
            raise ValueError(f"column {self.text!r}: a tag is not closed")
        return clean + text[at:], marked

    def _tokens(self, text: str, columns: Mapping[str, Any]) -> list[tuple[int, int, Verdict]]:
        """The span of each word in the text, with its label."""
        assert self.tokens is not None
        assert self.label is not None
        tokens = _list(columns[self.tokens], self.tokens, "a list of words")
        labels = _list(columns[self.label], self.label, "a list with one label per word")
        self._same_length(tokens, self.tokens, labels)
        marked, at = [], 0
        for number, (token, label) in enumerate(zip(tokens, labels, strict=True)):
            start = text.find(token.strip(), at) if isinstance(token, str) else -1
            if start < 0:
                raise ValueError(
                    f"column {self.tokens!r}, item {number}: {token!r:.80} is not the next word in"
                    f" column {self.text!r}; words must be spelled and ordered as in the text"
                )
            at = start + len(token.strip())
            marked.append((start, at, self._verdict(label)))
        return marked

    def _same_length(self, items: Sequence[Any], column: str, labels: Sequence[Any]) -> None:
        if len(items) != len(labels):
            raise ValueError(
                f"column {self.label!r} has {len(labels)} labels for the {len(items)} items of column"
                f" {column!r}: expected one for each"
            )

    def _verdict(self, label: Any) -> Verdict:
        verdict = self.verdicts.get(_spelled(label))
        if verdict is None:
            column = self.label or self.text
            what = "has no label" if label is None else f"has the unknown label {label!r:.80}"
            example = f"labels.unsure=[unsure,unknown,{_spelled(label)}]"
            raise ValueError(
                f"column {column!r} {what}: say what it means with labels.right=, labels.wrong= or"
                f" labels.unsure= (e.g. {example}), or leave the row out"
            )
        return verdict


def _list(value: Any, column: str, expected: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"column {column!r}: expected {expected}, got {value!r:.80}")
    return list(value)


def _spelled(label: Any) -> str:
    """The normalised form in which labels are compared: `True` is `true`, 1.0 is `1`."""
    if label is None:
        return "null"
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip().casefold()
