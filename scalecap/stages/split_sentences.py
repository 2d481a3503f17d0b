"""Cut a caption into sentences."""

import re
from typing import Literal

from scalecap.stages import stage

_CLOSERS = "\"'”’»)\\]）】」』》*_"
# A Latin mark needs white space after it (3.5 and a.org stay whole), a Chinese or Japanese one does not.
_END = re.compile(
    rf"(?P<latin>[.!?…]+)(?P<closed>[{_CLOSERS}]*)(?=\s|$)"
    rf"|[。！？]+[{_CLOSERS}]*(?![,.!?…，、；：。！？{_CLOSERS}])"
)
_NEAR = 100
"""Characters around a mark that tell whether it ends a sentence."""
_NEVER_END = re.compile(
    "dr|mr|mrs|ms|prof|st|mt|rev|gen|sen|gov|capt|lt|col|sgt|fig|vs|approx|ca|cf|e\\.g|i\\.e|esp|incl", re.I
)
_END_BEFORE_CAPITAL = re.compile("etc|inc|ltd|co|corp|jr|sr|a\\.m|p\\.m|ft|oz|lb|lbs|min|max", re.I)


@stage
def split_sentences(text: str, *, rule: Literal["default", "seed"] = "default") -> list[str]:
    """The sentences of a text, stripped, without empty ones.

    `rule: seed` splits after . ! ? 。 ！ ？ before white space. `rule: default` also splits Chinese
    and Japanese (no white space needed) and at line breaks, and does not split after "Dr.", "e.g.",
    initials and numbers of a list.
    """
    if rule == "seed":
        pieces = re.split(r"(?<=[.!?。！？])\s+", text)
    else:
        pieces = [piece for line in text.splitlines() for piece in _sentences(line)]
    return [piece.strip() for piece in pieces if piece.strip()]


def _sentences(line: str) -> list[str]:
    """The line cut after each sentence's end."""
    cuts = [0]
    for end in _END.finditer(line):
        # No more of the line than is looked at, or many marks in a very long one would take for ever.
        before = line[max(cuts[-1], end.start() - _NEAR) : end.start()]
        after = line[end.end() : end.end() + _NEAR].lstrip()
        if end["latin"] is None or _ends(before, end, after):
            cuts.append(end.end())
    return [line[start:stop] for start, stop in zip(cuts, [*cuts[1:], None], strict=True)]


def _ends(before: str, end: re.Match[str], after: str) -> bool:
    """Whether the mark `end` closes the sentence `before`, with `after` next on the line."""
    goes_on = after[:1].islower()
    if end["closed"].strip("*_") or end["latin"].endswith(("..", "…")):
        return not goes_on  # 'he says "Stop!" and waits'; "a dog... or a wolf"
    if end["latin"] != ".":
        return True
    word = before.split()[-1].lstrip("(\"'“‘[*_") if before.strip() else ""
    if re.fullmatch(r"[A-Z](\.[A-Z])*", word) and word != "I":
        return False  # J. K. Rowling, the U.S. flag
    if re.fullmatch(r"\d+|[a-z]", before.strip()):
        return False  # 1. first of a list
    if word.lower() == "no":
        return not after[:1].isdigit()
    if _END_BEFORE_CAPITAL.fullmatch(word):
        return not goes_on
    return not _NEVER_END.fullmatch(word)
