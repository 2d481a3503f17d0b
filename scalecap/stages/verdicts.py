"""Several statements judged in one reply: formatting, parsing and probabilities of the verdicts.

The reply has one line per statement, "1. yes". A verdict counts only with its number and word; nothing is
guessed from other text.
"""

import math
import re
from collections.abc import Sequence

from scalecap.stages import Scored
from scalecap.text.segmentation import Span

_LINE = re.compile(r"[ \t>*]*(\d+)[ \t]*[.):\-][ \t*]*(yes|no)\b", re.IGNORECASE)


def number_lines(texts: Sequence[str]) -> str:
    """`1. first`, `2. second` … one per line; line breaks within a text become spaces."""
    return "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, 1))


def parse(reply: str, count: int) -> list[bool] | None:
    """The verdicts on `count` statements; None unless each has exactly one."""
    found: dict[int, set[bool]] = {}
    for line in reply.splitlines():
        if match := _LINE.match(line):
            found.setdefault(int(match[1]), set()).add(match[2].casefold() == "yes")
    verdicts = [found.get(number, set()) for number in range(1, count + 1)]
    return [each.pop() for each in verdicts] if all(len(each) == 1 for each in verdicts) else None


def format_reply(verdicts: Sequence[bool]) -> tuple[str, list[Span]]:
    """The reply with exactly these verdicts, and the span of each yes or no in it."""
    text, spans = "", []
    for number, yes in enumerate(verdicts, 1):
        text += f"{chr(10) if text else ''}{number}. "
        word = "yes" if yes else "no"
        spans.append(Span(len(text), len(text) + len(word)))
        text += word
    return text, spans


def p_yes(scored: Scored, verdicts: Sequence[bool], words: Sequence[Span]) -> list[float] | None:
    """P(yes) of each statement from a scored reply: the probability of "yes", or 1 minus that of "no".

    None if the engine returns raw logits only.
    """
    found = []
    for yes, word in zip(verdicts, words, strict=True):
        tokens = [token for token in scored.tokens if token.start < word.end and token.end > word.start]
        p = math.exp(math.fsum(token.logprob for token in tokens))
        if math.isnan(p):
            return None
        found.append(p if yes else 1 - p)
    return found
