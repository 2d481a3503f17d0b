"""Choose one of several mutually exclusive statements."""

from dataclasses import dataclass
from typing import ClassVar

from scalecap.stages import Image, ModelClient, Role, stage, together
from scalecap.stages.choices import LETTERS, list_options
from scalecap.stages.scores import Score, unchecked_score
from scalecap.stages.verify import check_threshold
from scalecap.text.templates import Template

NONE = "None of these."


@stage(side=["scores"])
@dataclass(kw_only=True, eq=False)
class Choose:
    """From each group of statements, the one that the image supports best, if it is likely enough.

    `texts` are statements and `about` the group of each (as `generate` writes both, with `each` and
    `parse: lines`). A group keeps its likeliest statement if its probability is at least `threshold`.

    With `statement_prompt` each statement is a yes/no check, and the likeliest has the highest P(yes). With
    `prompt`, which lists the `options` by letter, "None of these." last, one request chooses among them:
    cheaper, but models prefer certain letters, smaller ones more so, and the probabilities are relative to
    the options, not probabilities of truth. Only the first 25 statements of a group are then offered; a
    larger group is flagged "shortened".

    The side column `scores` has one record per group, in order: {text, p_yes (the likeliest statement and its
    probability), kept, mass (as in `verify`), options: [{text, p}], about}.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("options",), "statement_prompt": ("text",)}

    prompt: Template | None = None
    statement_prompt: Template | None = None
    threshold: float = 0.5
    model: Role = "vlm"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if (self.prompt is None) == (self.statement_prompt is None):
            raise ValueError(
                "expected either `prompt` or `statement_prompt`: write `prompt: ${prompts.choose}` or"
                " `statement_prompt: ${prompts.verify}`"
            )

    async def __call__(
        self, client: ModelClient, *, texts: list[str], about: list[int], image: Image
    ) -> tuple[list[str], list[Score]]:
        groups: dict[int, list[str]] = {}
        for text, group in zip(texts, about, strict=True):
            groups.setdefault(group, []).append(text)
        order = [(group, list(dict.fromkeys(groups[group]))) for group in sorted(groups)]
        allowed = client.allowed([1 if self.prompt else len(statements) for _, statements in order])
        scores = await together(self._choose(client, *each, image) for each in order[:allowed])
        scores += [
            {**unchecked_score(statements[0]), "options": [], "about": group}
            for group, statements in order[allowed:]
        ]
        return [score["text"] for score in scores if score["kept"]], scores

    async def _choose(self, client: ModelClient, group: int, statements: list[str], image: Image) -> Score:
        if self.statement_prompt is not None:
            prompts = [self.statement_prompt.render(text=text) for text in statements]
            answers = await together(
                client.choose(prompt, image=image, model=self.model) for prompt in prompts
            )
            ps = [chosen.probabilities[0] for chosen in answers]
        else:
            assert self.prompt is not None
            if len(statements) >= len(LETTERS):
                client.flag("shortened")
                statements = statements[: len(LETTERS) - 1]
            letters = LETTERS[: len(statements) + 1]
            prompt = self.prompt.render(options=list_options([*statements, NONE]))
            answers = [await client.choose(prompt, letters, image=image, model=self.model)]
            ps = list(answers[0].probabilities)
        p = max(ps[: len(statements)])
        answered = any(chosen.answered for chosen in answers)
        masses = [mass for chosen in answers if (mass := chosen.known_mass) is not None]
        return {
            "text": statements[ps.index(p)],
            "p_yes": p if answered else None,
            "kept": answered and p >= self.threshold and p == max(ps),
            "mass": min(masses, default=None),
            "options": [
                {"text": text, "p": each} for text, each in zip([*statements, NONE], ps, strict=False)
            ],
            "about": group,
        }
