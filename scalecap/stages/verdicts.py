"""Several statements judged in one reply: formatting, parsing and probabilities of the verdicts.

The reply has one line per statement, "1. yes". A verdict counts only with its number and word; nothing is
guessed from other text.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from scalecap.stages import Scored
from scalecap.text.segmentation import Span

_LINE = re.compile(
    r"[ \t>*(\-]*(\d+)[ \t]*[.):\-][ \t*]*(yes|no)\b(?=[\s*_]*(?:$|[.,;:!(\-–—]))", re.IGNORECASE
)
"""A line may go on ("1. No, it is red."), but not as a statement does ("1. No dog is there.")."""


def number_lines(texts: Sequence[str]) -> str:
    """`1. first`, `2. second` … one per line; line breaks within a text become spaces."""
    return "\n".join(f"{number}. {' '.join(text.split())}" for number, text in enumerate(texts, 1))


class Verdict(NamedTuple):
    """The verdict on one statement."""

    yes: bool
    word: Span
    """Its yes or no in the reply."""


def parse(reply: str, count: int) -> list[Verdict] | None:
    """The verdicts on `count` statements; None unless each has exactly one."""
    found: dict[int, list[Verdict]] = {}
    start = 0
    for line in reply.splitlines(keepends=True):
        if match := _LINE.match(line):
            word = Span(start + match.start(2), start + match.end(2))
            found.setdefault(int(match[1]), []).append(Verdict(match[2].casefold() == "yes", word))
        start += len(line)
    verdicts = [found.get(number, []) for number in range(1, count + 1)]
    one_each = all(len({verdict.yes for verdict in each}) == 1 for each in verdicts)
    return [each[0] for each in verdicts] if one_each else None


def p_yes(scored: Scored, verdicts: Sequence[Verdict]) -> list[float] | None:
    """P(yes) of each statement from a scored reply: the probability of its yes, or 1 minus that of its no.

    None if the engine returns raw logits only.
    """
    found = []
    for yes, word in verdicts:
        tokens = [token for token in scored.tokens if token.start < word.end and token.end > word.start]
        p = math.exp(math.fsum(token.logprob for token in tokens))
        if math.isnan(p):
            return None
        found.append(p if yes else 1 - p)
    return found
