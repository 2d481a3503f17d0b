"""Cut a caption into sentences."""

import re
from typing import Literal

from scalecap.stages import stage
from scalecap.text.segmentation import sentences


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
        pieces = [text[start:end] for start, end in sentences(text)]
    return [piece.strip() for piece in pieces if piece.strip()]
