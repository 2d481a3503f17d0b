"""CHAIR: objects that a caption names and the image does not have (Rohrbach et al. 2018)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from scalecap.metrics import texts
from scalecap.stages import Columns, Measures, ModelClient, stage
from scalecap.text.segmentation import word_count

COCO = Path(__file__).with_name("coco.txt")


@stage(better={"chair_i": "lower", "chair_s": "lower", "words": "neither"})
class Chair:
    """Objects named in each caption against the list of those in the image.

    `chair_i` is the share of mentions whose object is not there, `chair_s` the share of captions with
    one; `recall` is how many of the objects, of those in the vocabulary, are named at all, without which
    short captions win. `objects` has the names of what is in the image, by any of their synonyms.

    `vocabulary` is a text file of what can be found in a caption, one object per line: its name, then
    synonyms, separated by commas; regular plurals are added. A line that begins with ! lists what is none of
    them ("! train track"). `coco` is the packaged list of COCO's 80, compounds as in the authors' script.
    """

    role: ClassVar[None] = None

    def __init__(self, *, vocabulary: str = "coco", words: int | None = None) -> None:
        self.known, self.words = Vocabulary.load(vocabulary), words

    async def __call__(self, client: ModelClient, *, captions: Columns, objects: list[str]) -> Measures:
        there = {self.known.name(each) for each in objects}
        measured: dict[str, Any] = {}
        for name, caption in texts(captions, self.words):
            mentions = self.known.find(caption)
            invented = [mention for mention in mentions if mention not in there]
            measured[name] = {
                "chair_i": {"count": len(invented), "of": len(mentions)},
                "chair_s": int(bool(invented)),
                "recall": {"count": len(there & set(mentions)), "of": len(there & self.known.objects)},
                "words": word_count(caption),
            }
        return measured


class Vocabulary:
    """Objects with their synonyms; a synonym of several words comes before the words in it."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._names: dict[str, str] = {}
        for line in lines:
            synonyms = [_plain(each) for each in line.removeprefix("!").split(",") if each.strip()]
            for synonym in synonyms:
                for form in (synonym, *_plurals(synonym)):
                    self._names.setdefault(form, "" if line.startswith("!") else synonyms[0])
        self.objects = frozenset(self._names.values()) - {""}
        forms = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, forms)) + r")\b")

    @staticmethod
    def load(file: str) -> "Vocabulary":
        """The vocabulary in a file; ValueError if it can't be read or is empty."""
        path = COCO if file == "coco" else Path(file)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise ValueError(f"vocabulary: can't read {path}: {error.strerror}") from error
        vocabulary = Vocabulary(lines)
        if not vocabulary.objects:
            raise ValueError(f"vocabulary: {path} lists no objects")
        return vocabulary

    def name(self, word: str) -> str:
        """The object's name for one of its synonyms; an unknown word is returned as it is."""
        plain = _plain(word)
        return self._names.get(plain, plain)

    def find(self, text: str) -> list[str]:
        """The name of each object mentioned, in order."""
        found = (self._names[match.group()] for match in self._pattern.finditer(_plain(text)))
        return [name for name in found if name]


def _plain(text: str) -> str:
    """In lower case, with one space for each hyphen and white space: "hot-dog" is "hot dog"."""
    return re.sub(r"[\s-]+", " ", text.strip().lower())


def _plurals(word: str) -> list[str]:
    """The regular plural."""
    if re.search(r"(s|x|z|ch|sh)$", word):
        return [word + "es"]
    if re.search(r"[^aeiou]y$", word):
        return [word[:-1] + "ies"]
    return [word + "s"]
