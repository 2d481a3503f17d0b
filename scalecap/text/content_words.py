"""The content words of a text, those that say something about an image (ScaleCap, arXiv 2506.19848).

They are adjectives, adverbs, nouns, numbers, names, verbs and interjections (ADJ, ADV, NOUN, NUM, PROPN,
VERB, INTJ). Parts of speech come from TextBlob's pattern tagger, whose English lexicon and rules
are part of its wheel. Unknown words count, so text in another language is rated as a whole. Forms of be, have
and do, modal verbs and "not" never count.
"""

from scalecap.text.segmentation import Span, words

_TAGS = ("JJ", "RB", "NN", "CD", "VB", "UH", "FW")
"""First letters of the Penn Treebank's tags of content words."""
AUXILIARIES = frozenset([
    "am", "is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "having", "do", "does",
    "did", "can", "could", "may", "might", "must", "shall", "should", "will", "would", "ought", "not",
])  # fmt: skip


def content_words(text: str) -> list[Span]:
    """The content words of a text, in order."""
    return [
        span for span, stem, tag in tagged(text) if tag.startswith(_TAGS) and stem.lower() not in AUXILIARIES
    ]


def nouns(text: str) -> set[str]:
    """The distinct nouns of a text in lower case, plurals as singulars."""
    from textblob.en.inflect import singularize

    return {
        singularize(stem.lower()) if tag.startswith("NNS") else stem.lower()
        for _, stem, tag in tagged(text)
        if tag.startswith("NN")
    }


def is_compound(first: str, second: str) -> bool:
    """Whether two adjacent words with these tags are one noun ("dog house"); "bear" of "teddy bear" is VB."""
    return first in ("NN", "NNS") and (second in ("NN", "NNS") or (first, second) == ("NN", "VB"))


def tagged(text: str) -> list[tuple[Span, str, str]]:
    """Each word's span, stem and Penn Treebank tag."""
    from textblob.taggers import PatternTagger

    found = words(text)
    stems = [_stem(text[start:end]) for start, end in found]
    tagged = PatternTagger().tag(" ".join(stems), tokenize=False) if stems else []
    return [(span, stem, tag) for span, stem, (_, tag) in zip(found, stems, tagged, strict=True)]


def _stem(word: str) -> str:
    """The word without what a contraction or genitive adds: "dog's" is a dog, "isn't" is "is"."""
    stem, mark, _ = word.replace("’", "'").partition("'")
    return stem[:-1] if mark and word.lower().endswith("t") and stem.lower().endswith("n") else stem
