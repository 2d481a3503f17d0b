"""CapsBench: what a reader who sees only the caption can answer (Liu et al. 2024, arXiv 2409.10695)."""

from typing import Any, ClassVar

from scalecap.metrics import by_category, records, share, texts
from scalecap.stages import Columns, Measures, ModelClient, Role, choices, stage, together
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
            replies = await together(self._answer(client, caption, each["question"]) for each in questions)
            hits = [
                reply.option == _right_answer(each["answer"])
                for each, reply in zip(questions, replies, strict=True)
            ]
            measured[name] = {
                "accuracy": share(hits),
                "unanswered": share(reply.option in ("n/a", "") for reply in replies),
                "words": len(caption.split()),
                "category": by_category(
                    (str(each["category"]), hit) for each, hit in zip(questions, hits, strict=True)
                ),
            }
            answers += [
                {
                    "caption": name,
                    "question": each["question"],
                    "answer": reply.option,
                    "p": reply.p,
                    "right": hit,
                    "mass": reply.mass,
                }
                for each, reply, hit in zip(questions, replies, hits, strict=True)
            ]
        return measured, answers

    async def _answer(self, client: ModelClient, caption: str, question: str) -> choices.Choice:
        prompt = self.prompt.render(caption=caption, question=str(question))
        return choices.most_probable(await client.choose(prompt, ANSWERS, model=self.model), ANSWERS)


def _right_answer(answer: Any) -> str:
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return str(answer).strip().lower()
