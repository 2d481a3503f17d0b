"""Questions about the image, answered from the caption alone (the Prism way of the ScaleCap paper)."""

import re
import string
from collections.abc import Mapping
from typing import Any, ClassVar

from scalecap.metrics import texts
from scalecap.stages import Columns, Measures, ModelClient, Role, Sampling, choices, stage
from scalecap.text.segmentation import word_count
from scalecap.text.templates import Template

SHORT = Sampling(temperature=0, max_tokens=64)


@stage(side=["answers"], better={"words": "neither"})
class Qa:
    """One question a row, answered from the caption alone: among options by letter, else in a few words.

    With `options` (a list, or a mapping of letters to texts, null where there is none) the answer is the
    likeliest letter, right when it is `answer` (its text, letter or index). Without, a short answer is
    written and is right when it equals `answer`, or one of a list of them, after `plain` (Qiao et al. 2024,
    "Prism", arXiv 2406.14544, leaves the reading to one language model, as here).
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("caption", "question", "options")}

    def __init__(self, *, prompt: Template, words: int | None = None, model: Role = "judge") -> None:
        self.prompt, self.words, self.model = prompt, words, model

    async def __call__(
        self, client: ModelClient, *, captions: Columns, question: str, answer: Any, options: Any = None
    ) -> tuple[Measures, list[dict[str, Any]]]:
        measured: dict[str, Any] = {}
        answers: list[dict[str, Any]] = []
        if isinstance(options, Mapping):
            answer = options.get(answer, answer) if isinstance(answer, str) else answer
            options = [options[letter] for letter in sorted(options) if options[letter] is not None]
        offered = list(map(str, options or []))
        accepted = [each for each in (answer if isinstance(answer, list) else [answer]) if each is not None]
        if not accepted:
            raise ValueError("the row has no right answer")
        for name, caption in texts(captions, self.words):
            prompt = self.prompt.render(
                caption=caption, question=question, options=choices.list_options(offered) if offered else ""
            )
            if offered:
                option, p, mass = await choices.choose_by_letter(client, prompt, offered, self.model)
                right = option == offered[choices.index_of(answer, options)]
            else:
                reply = await client.generate(prompt, model=self.model, sampling=SHORT)
                option, p, mass = extract(reply.text), None, None
                right = plain(option) in {plain(_spelled(each)) for each in accepted}
            measured[name] = {"accuracy": int(right), "words": word_count(caption)}
            answered = {"question": question, "answer": option, "p": p, "right": right, "mass": mass}
            answers.append({"caption": name, **answered})
        return measured, answers


def extract(reply: str) -> str:
    """The answer in a reply: what follows its last "answer is" or "answer:", else its first line."""
    after = re.split(r"\banswer[*_]*(?:\s+is\b|\s*:)\s*:?", reply, flags=re.IGNORECASE)[-1]
    lines = [line.strip() for line in after.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else ""


def _spelled(answer: Any) -> str:
    """A right answer as a text: true is yes, 2.0 is 2."""
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)


def plain(answer: str) -> str:
    """An answer without case, articles, outer marks and double spaces, for comparison."""
    words = answer.casefold().split()
    stripped = [word.strip(string.punctuation.replace("%", "").replace("$", "")) for word in words]
    plain = " ".join(word for word in stripped if word and word not in ("a", "an", "the"))
    return plain or " ".join(filter(None, stripped)) or " ".join(words)  # the answer is "A", or "?"
