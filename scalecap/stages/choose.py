"""Choose one of several statements that exclude each other."""

from typing import Any, ClassVar

from scalecap.choices import LETTERS, listed
from scalecap.prompts import Template
from scalecap.stages import Ask, Image, Role, stage, together
from scalecap.stages.verify import probability

NONE = "None of these."


@stage(side=["scores"])
class Choose:
    """Of each group of statements the one that the picture supports best, if it is likely enough.

    `texts` are statements and `about` the group of each (as `generate` writes both, with `each` and
    `parse: lines`). The prompt's `options` lists a group's distinct statements by letter, "None of these."
    last; the probability of each letter is read from one token. A group keeps its likeliest statement when
    that has `threshold` or more. The side column `scores` has a record a group, in order: {text, p_yes (the
    likeliest statement and its probability), kept, mass (as in `verify`), options: [{text, p}], about}.

    Models prefer some letters whatever stands there, more so the smaller they are; and probabilities are
    of the statements on offer, not of truth. A group of more than 25 statements is cut there, marked
    "shortened".
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("options",)}

    def __init__(self, *, prompt: Template, threshold: float = 0.5, model: Role = "vlm") -> None:
        self.prompt, self.threshold, self.model = prompt, probability(threshold), model

    async def __call__(
        self, ask: Ask, *, texts: list[str], about: list[int], image: Image
    ) -> tuple[list[str], list[dict[str, Any]]]:
        groups: dict[int, list[str]] = {}
        for text, group in zip(texts, about, strict=True):
            groups.setdefault(group, []).append(text)
        scores = await together(
            self._choose(ask, group, list(dict.fromkeys(groups[group])), image) for group in sorted(groups)
        )
        return [score["text"] for score in scores if score["kept"]], scores

    async def _choose(self, ask: Ask, group: int, statements: list[str], image: Image) -> dict[str, Any]:
        if len(statements) >= len(LETTERS):
            ask.mark("shortened")
            statements = statements[: len(LETTERS) - 1]
        offered = [*statements, NONE]
        chosen = await ask.choose(
            self.prompt.render(options=listed(offered)),
            LETTERS[: len(offered)],
            image=image,
            model=self.model,
        )
        *ps, p_none = chosen.probabilities
        p = max(ps)
        return {
            "text": statements[ps.index(p)],
            "p_yes": p if chosen.answered else None,
            "kept": chosen.answered and p >= self.threshold and p > p_none,
            "mass": chosen.known_mass,
            "options": [
                {"text": text, "p": each} for text, each in zip(offered, chosen.probabilities, strict=True)
            ],
            "about": group,
        }
