"""Similarity to reference captions: BLEU, METEOR, ROUGE-L, CIDEr."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from scalecap.metrics import texts
from scalecap.stages import Columns, Measures, stage
from scalecap.stats import Interval, mean
from scalecap.text.segmentation import CJK, word_count
from scalecap.threads import DaemonPool


class _Cooked:
    """A scorer's n-gram counts of a caption column, computed anew at each iteration, not held in memory."""

    def __init__(self, count: int, rows: Iterable[Sequence[Any]], name: str, cook: Callable[[Any, Any], Any]):
        self._count, self._rows, self._name, self._cook = count, rows, name, cook

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        captions = ((row, each) for row in self._rows for each in row[1] if each["caption"] == self._name)
        return (self._cook(each["text"], row[2]) for row, each in captions)


def cider(rows: Iterable[Sequence[Any]]) -> dict[str, Interval]:
    """CIDEr-D of each caption column (Vedantam et al. 2015), whose weights come from all references.

    Of all rows, it holds how many references have each n-gram.
    """
    from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

    found = {}
    for name, count in Counter(each["caption"] for row in rows for each in row[1]).items():
        scorer = CiderScorer()
        scorer.ctest = _Cooked(count, rows, name, lambda text, _: cook_test(_joined(text)))
        scorer.crefs = _Cooked(count, rows, name, lambda _, known: cook_refs(list(map(_joined, known))))
        _, scores = scorer.compute_score()
        if interval := mean([(float(score), 1.0) for score in scores]):
            found[f"{name}.cider"] = interval
    return found


@stage(
    side=["texts", "references"],
    overall=cider,
    requires=dict.fromkeys(("sacrebleu", "nltk", "pycocoevalcap"), "scalecap[metrics]"),
    better={"words": "neither"},
)
async def reference(
    captions: Columns, references: Any, *, words: int | None = None
) -> tuple[Measures, list[dict[str, Any]], list[str]]:
    """BLEU-4, METEOR, ROUGE-L and CIDEr of each caption against reference captions.

    By sacrebleu (smoothed, per sentence, 0 to 100), nltk (with stems; synonyms only where nltk's WordNet
    data is) and pycocoevalcap (ROUGE-L with β 1.2; over all rows CIDEr-D, 0 to 10). Words are taken in
    lower case, without marks; of Chinese and Japanese each character is one. Needs `pip install
    "scalecap[metrics]"`.

    Args:
        references: one caption, or a list of them.
    """
    listed = references if isinstance(references, list) else [references]
    given = [each for each in listed if each is not None]
    if other := [each for each in given if not isinstance(each, str)]:
        raise ValueError(f"expected a reference caption as text, got {other[0]!r:.80}")
    if not given:
        raise ValueError("the row has no reference caption")
    measured: dict[str, Any] = {}
    kept_texts = []
    for name, caption in texts(captions, words):
        # METEOR takes 40 ms for a caption of 200 words, too long for the event loop.
        similarity = await asyncio.get_running_loop().run_in_executor(_thread(), _similarity, caption, given)
        measured[name] = {**similarity, "words": word_count(caption)}
        kept_texts.append({"caption": name, "text": caption})
    return measured, kept_texts, given


@cache
def _thread() -> DaemonPool:
    """One thread for all rows: nltk's corpora are not thread-safe."""
    return DaemonPool(1, "reference")


def _similarity(caption: str, references: list[str]) -> dict[str, float]:
    import sacrebleu
    from nltk.translate.meteor_score import meteor_score
    from pycocoevalcap.rouge.rouge import Rouge

    plain, known = _words(caption), [_words(each) for each in references]
    synonyms = _wordnet()
    bleu = sacrebleu.sentence_bleu(" ".join(plain), [" ".join(each) for each in known], tokenize="none")
    return {
        "bleu": float(bleu.score),
        "meteor": float(meteor_score(known, plain, wordnet=synonyms)),
        "rouge_l": float(Rouge().calc_score([" ".join(plain)], [" ".join(each) for each in known])),
    }


@cache
def _wordnet() -> Any:
    import nltk
    from nltk.corpus import wordnet

    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:  # WordNet's data is not part of nltk
        return SimpleNamespace(synsets=lambda word: [])
    return wordnet


def _joined(text: str) -> str:
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    return re.findall(rf"[{CJK}]|[^\W{CJK}]+", text.lower())
