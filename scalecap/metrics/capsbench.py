"""CapsBench: what a reader who sees only the caption can answer (Liu et al. 2024, arXiv 2409.10695)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from scalecap.metrics import by_category, records, share, texts
from scalecap.stages import Columns, Measures, ModelClient, Role, choices, stage, together
from scalecap.text.segmentation import word_count
from scalecap.text.templates import Template

ANSWERS = ("yes", "no", "n/a")


@stage(side=["answers"], better={"unanswered": "lower", "words": "neither"})
class Capsbench:
    """Questions with the answers yes or no, answered from the caption alone: yes, no or n/a.

    `questions` is a list of {question, answer, category}. Of each caption: `accuracy`, in all and by
    `category`, the share `unanswered` (n/a, or none of the three), and its length in `words`. The side
    column `answers` has every answer with its probability.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("caption", "question")}

    def __init__(self, *, prompt: Template, words: int | None = None, model: Role = "judge") -> None:
        self.prompt, self.words, self.model = prompt, words, model

    async def __call__(
        self, client: ModelClient, *, captions: Columns, questions: Any
    ) -> tuple[Measures, list[dict[str, Any]]]:
        questions = records(questions, "question", "answer", "category")
        measured: dict[str, Any] = {}
        answers: list[dict[str, Any]] = []
        for name, caption in texts(captions, self.words):
            answered = await together(self._answer(client, caption, each) for each in questions)
            measured[name] = {
                "accuracy": share(each["right"] for each in answered),
                "unanswered": share(each["answer"] in ("n/a", "") for each in answered),
                "words": word_count(caption),
                "category": by_category(
                    (str(question["category"]), each["right"])
                    for question, each in zip(questions, answered, strict=True)
                ),
            }
            answers += [{"caption": name, **each} for each in answered]
        return measured, answers

    async def _answer(self, client: ModelClient, caption: str, question: Mapping[str, Any]) -> dict[str, Any]:
        prompt = self.prompt.render(caption=caption, question=str(question["question"]))
        chosen = await client.choose(prompt, ANSWERS, model=self.model)
        option, p, mass = choices.most_probable(chosen, ANSWERS)
        right = option == _right_answer(question["answer"])
        return {"question": question["question"], "answer": option, "p": p, "right": right, "mass": mass}


def _right_answer(answer: Any) -> str:
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return str(answer).strip().lower()
