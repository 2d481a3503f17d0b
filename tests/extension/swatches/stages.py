"""A stage, and a metric, which is a stage that writes numbers."""

from scalecap.metrics import texts
from scalecap.stages import Columns, Measures, stage


@stage
def first_sentence(text: str) -> str:
    """The text up to its first full stop."""
    return text.partition(".")[0] + "."


@stage(better={"excess": "lower"})
def excess(captions: Columns, *, words: int = 4) -> Measures:
    """Words of each caption beyond so many; the fewer the better."""
    return {name: {"excess": max(0, len(caption.split()) - words)} for name, caption in texts(captions)}
