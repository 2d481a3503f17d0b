"""Stages whose column is a number, or a small record of numbers (`scalecap.stages.Measures`).

They are stages like any other, in a folder of their own to be found; the summary averages them.
`README.md` says of each what it measures, where it comes from and what it can't see.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scalecap.text.segmentation import COUNTED_WORD


def texts(captions: Mapping[str, Any], words: int | None = None) -> Iterator[tuple[str, str]]:
    """Each column's name and caption; lists are joined by line breaks, null columns left out.

    Args:
        words: maximum number of words (see `segmentation.word_count`), to compare captions of equal length.

    Raises:
        ValueError: a value is neither a text nor a list of texts.
    """
    for name, value in captions.items():
        if value is not None:
            parts = value if isinstance(value, list) else [value]
            if other := [part for part in parts if not isinstance(part, str)]:
                raise ValueError(f"column {name!r}: expected a caption as text, got {other[0]!r:.80}")
            text = "\n".join(parts)
            cut = None if words is None else re.match(rf"(?:\s*(?:{COUNTED_WORD})){{0,{words}}}", text)
            yield name, cut.group() if cut else text


def share(hits: Iterable[bool]) -> dict[str, int]:
    """A share that the summary pools over rows: `{"count": hits, "of": all}`."""
    all_hits = list(hits)
    return {"count": sum(all_hits), "of": len(all_hits)}


def by_category(hits: Iterable[tuple[str, bool]]) -> dict[str, dict[str, int]]:
    """The share of hits in each category."""
    found: dict[str, list[bool]] = {}
    for category, hit in hits:
        found.setdefault(category, []).append(hit)
    return {category: share(found[category]) for category in sorted(found)}


def records(value: Any, *names: str) -> list[Mapping[str, Any]]:
    """A column of records, as a list of mappings or as a mapping of lists, each with all `names`.

    Raises:
        ValueError: it is something else, or a record lacks a name.
    """
    if isinstance(value, Mapping) and all(isinstance(each, list) for each in value.values()):
        lengths = {name: len(each) for name, each in value.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected lists of equal length, got {lengths!r:.80}")
        value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise ValueError(f"expected a list of records with {', '.join(names)}, got {value!r:.80}")
    for number, record in enumerate(value):
        if missing := [name for name in names if not isinstance(record, Mapping) or name not in record]:
            raise ValueError(f"record {number} lacks {', '.join(missing)}: {record!r:.80}")
    return value
