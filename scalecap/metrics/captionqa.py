"""CaptionQA: how useful a caption is in place of its image (Yang et al. 2025, arXiv 2511.21025)."""

import hashlib
import random
from collections.abc import Mapping
from typing import Any, ClassVar

from scalecap.metrics import by_category, records, share, texts
from scalecap.stages import Columns, Measures, ModelClient, Role, choices, stage, together
from scalecap.text.segmentation import word_count
from scalecap.text.templates import Template

CANNOT = "Cannot answer from the caption"
_VERBS = frozenset([
    "is", "are", "was", "were", "do", "does", "did", "have", "has", "had", "can", "could", "will", "would",
    "should", "shall", "may", "might", "must",
])  # fmt: skip


@stage(side=["answers"], better={"unanswered": "lower", "words": "neither"})
class Captionqa:
    """Multiple-choice questions, answered from the caption alone, with "cannot answer" on offer.

    `questions` is a list of {question, choices, answer, category}. Every question but yes/no ones has
    one option more, "Cannot answer from the caption", which scores 1/n + 0.05 with n choices; a right
    answer scores 1. Options are shuffled, each question's always alike. Of each caption: `score`,
    `accuracy`, in all and by `category`, the share `unanswered`, and its length in `words`.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("caption", "question", "options")}

    def __init__(self, *, prompt: Template, words: int | None = None, model: Role = "judge") -> None:
        self.prompt, self.words, self.model = prompt, words, model

    async def __call__(
        self, client: ModelClient, *, captions: Columns, questions: Any
    ) -> tuple[Measures, list[dict[str, Any]]]:
        questions = records(questions, "question", "choices", "answer")
        measured: dict[str, Any] = {}
        answers: list[dict[str, Any]] = []
        for name, caption in texts(captions, self.words):
            answered = await together(self._answer(client, caption, each) for each in questions)
            measured[name] = {
                "score": {"count": sum(each["score"] for each in answered), "of": len(answered)},
                "accuracy": share(each["right"] for each in answered),
                "unanswered": share(each["answer"] in (CANNOT, "") for each in answered),
                "words": word_count(caption),
                "category": by_category(
                    (category, each["right"])
                    for question, each in zip(questions, answered, strict=True)
                    for category in _categories(question)
                ),
            }
            answers += [{"caption": name, **each} for each in answered]
        return measured, answers

    async def _answer(self, client: ModelClient, caption: str, question: Mapping[str, Any]) -> dict[str, Any]:
        offered = list(map(str, question["choices"]))
        right = offered[choices.index_of(question["answer"], question["choices"])]
        text = str(question["question"])
        options = [*offered] if is_yes_no(text, offered) else [*offered, CANNOT]
        # Seeded by the question, so that every caption meets it in the same order.
        random.Random(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()).shuffle(options)
        prompt = self.prompt.render(caption=caption, question=text, options=choices.list_options(options))
        option, p, mass = await choices.choose_by_letter(client, prompt, options, self.model)
        score = 1.0 if option == right else 1 / len(offered) + 0.05 if option == CANNOT else 0.0
        answer = {"question": text, "answer": option, "p": p, "right": option == right}
        return {**answer, "score": score, "mass": mass}


def is_yes_no(question: str, options: list[str]) -> bool:
    """Whether yes and no are among the options, or the question begins as such a one does."""
    plain = {option.strip().casefold() for option in options}
    return {"yes", "no"} <= plain or question.split(" ", 1)[0].casefold() in _VERBS


def _categories(question: Mapping[str, Any]) -> list[str]:
    category = question.get("category") or []
    return [str(each) for each in category] if isinstance(category, list) else [str(category)]
