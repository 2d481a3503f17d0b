"""Segmentation of a text into sentences, clauses and words, every character in exactly one piece.

Sentences end at final punctuation (not in "3.5", "Dr." or "1."), Chinese, Japanese, Hindi and Arabic too, and
at line breaks. Clauses are the parts of a sentence between commas. The pieces joined are the text.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_CLOSERS = "\"'”’»)\\]）】」』》*_"
# 「止まれ！」と書いてある: what is quoted is part of the sentence.
_GOES_ON = "(?<=[\"'”’」』）])(?:的(?!士)|字样|字樣|等|と(?!ても|ころ|り)|の(?!んびり|どか)|など)"
# A Latin mark needs white space after it (3.5 and a.org stay whole), a Chinese or Japanese one does not.
_END = re.compile(
    rf"(?P<latin>[.!?…।॥۔؟]+)(?P<closed>[{_CLOSERS}]*(?:[ \u00a0\u202f]»)?)(?=\s|$)"
    rf"|[。！？]+[{_CLOSERS}]*(?![,.!?…，、；：。！？{_CLOSERS}])(?!{_GOES_ON})"
)
_CONTEXT = 100
"""Characters on each side of a punctuation mark that decide whether it ends a sentence."""
_NEVER_END = re.compile(
    "[Dd]r|[Mm]rs?|[Mm]s|[Pp]rof|[Mm]t|Rev|Gen|Sen|Gov|Capt|Lt|Col|Sgt"
    "|[Vv]s|[Aa]pprox|[Cc]a|[Cc]f|[Ee]\\.g|[Ii]\\.e|[Ee]sp|[Ii]ncl|[Ee]st"
    "|Sra|Srta|Dra|Sig|Dott|[Aa]prox|bzw|evtl|ggf|inkl|sog|vgl|Nr"
)
"""Abbreviations after which a sentence goes on. Those that are words too count only with a capital."""
_OPENER = re.compile(
    r"(?:An?|The|It|Its|He|His|She|Her|They|Their|There|This|That|These|Those|In|On|At|To|Above|Below|Behind|Near"
    r"|Next|Beside|Both|Another|Other|Some|Several|Two|Three)\b(?!\.)"
)
"""Words that begin a sentence and no name: before them a capital letter with a full stop ends one."""
_END_BEFORE_CAPITAL = re.compile("etc|inc|ltd|co|corp|a\\.m|p\\.m|ft|oz|lb|lbs|min|max", re.I)
# 1,200 stays whole; 、 only lists words.
_COMMA = re.compile(rf"(?:,[{_CLOSERS}]*(?=\s)|[，،][{_CLOSERS}]*)")
_LAST_MARK = re.compile(rf"[.!?…।॥۔؟。！？]+[{_CLOSERS}]*\s*$")
# Chinese and Japanese characters, for a set in a pattern.
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
COUNTED_WORD = rf"[^\w\s]*[{CJK}][^\w\s]*|[^\s{CJK}]+"
"""A word of a text's length: a Chinese or Japanese character, or what is between white space."""
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*(?:['’\-][^\W_]+)*")


class Span(NamedTuple):
    """Characters `start:end` of a text."""

    start: int
    end: int


def sentences(text: str) -> list[Span]:
    """Spans that cover the text once, each a sentence with the white space before it, as tokens have it.

    White space at the text's end belongs to the last; a text of white space alone is one span, an empty
    text has none.
    """
    cuts = []
    at = 0
    for line in text.splitlines(keepends=True):
        cuts += [at + cut for cut in _sentence_ends(line)]
        at += len(line)
        cuts.append(at)
    return _spans_between(text, cuts)


def is_complete(sentence: str) -> bool:
    """Whether a sentence ends with final punctuation."""
    return _LAST_MARK.search(sentence) is not None


def clauses(text: str) -> list[Span]:
    """Spans that cover a sentence once, cut after its commas."""
    return _spans_between(text, (comma.end() for comma in _COMMA.finditer(text)))


def words(text: str) -> list[Span]:
    """The words of a text, in order: letters and digits, inner apostrophes, hyphens and decimal points."""
    return [Span(*found.span()) for found in _WORD.finditer(text)]


def word_count(text: str) -> int:
    """The length of a text in words, Chinese and Japanese in characters."""
    return len(re.findall(COUNTED_WORD, text))


def join_kept(pieces: Sequence[tuple[str, bool]]) -> str:
    """A sentence with only some of its clauses, stripped.

    If the last clause is dropped, the sentence's final punctuation replaces the comma before it.

    Args:
        pieces: (clause, whether it is kept) in order.
    """
    kept = "".join(text for text, keep in pieces if keep).strip()
    if not kept or pieces[-1][1]:
        return kept
    mark = _LAST_MARK.search(pieces[-1][0])
    kept = re.sub(rf"[,，،]([{_CLOSERS}]*)$", r"\1", kept)
    return kept + (mark.group().strip() if mark else "")


def overlap(spans: Iterable[Span], others: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Pairs of indices of spans that share a character; both in order, neither overlapping itself."""
    first = 0
    for index, (start, end) in enumerate(spans):
        while first < len(others) and others[first].end <= start:
            first += 1
        other = first
        while other < len(others) and others[other].start < end:
            if min(end, others[other].end) > max(start, others[other].start):
                yield index, other
            other += 1


def _spans_between(text: str, cuts: Iterable[int]) -> list[Span]:
    """Spans between the cuts; one of white space alone is joined to the next, at the end to the last."""
    spans: list[Span] = []
    start = previous = 0
    for cut in cuts:
        if text[previous:cut].strip():
            spans.append(Span(start, cut))
            start = cut
        previous = cut
    if start < len(text):
        if spans and not text[start:].strip():
            start = spans.pop().start
        spans.append(Span(start, len(text)))
    return spans


def _sentence_ends(line: str) -> Iterator[int]:
    """Offsets at which sentences of a line end, without the end of the line."""
    start = 0
    for end in _END.finditer(line):
        # A bounded context, or a long line with many marks would take quadratic time.
        before = line[max(start, end.start() - _CONTEXT) : end.start()]
        after = line[end.end() : end.end() + _CONTEXT].lstrip()
        if end["latin"] is None or _ends_sentence(before, end, after):
            start = end.end()
            yield start


def _ends_sentence(before: str, end: re.Match[str], after: str) -> bool:
    """Whether the punctuation `end` ends a sentence, between the texts `before` and `after`."""
    continues = after[:1].islower()
    if end["closed"].strip("*_") or end["latin"].endswith(("..", "…")):
        return not continues  # 'he says "Stop!" and waits'; "a dog... or a wolf"
    if end["latin"] != ".":
        return True
    word = before.split()[-1].lstrip("(\"'“‘[*_") if before.strip() else ""
    if re.fullmatch(r"\d+|[A-Za-z]", before.strip()):
        return False  # 1. first of a list
    if word.lower() in ("no", "fig") or re.fullmatch("Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec", word):
        return not after[:1].isdigit()
    if _END_BEFORE_CAPITAL.fullmatch(word):
        return not continues
    if _NEVER_END.fullmatch(word):
        return False
    if re.fullmatch(r"[A-Za-zА-я](\.[A-Za-z])*|[JS]r|[Ss]t|Ave|Blvd|Rd|Ph\.D", word) and word != "I":
        return _OPENER.match(after) is not None  # J. K. Rowling, the U.S. flag, z. B.; "plan B. The map"
    return True
