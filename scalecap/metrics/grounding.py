"""How much of a caption a model finds in the image."""

from dataclasses import dataclass
from typing import Any, ClassVar

from scalecap.metrics import texts
from scalecap.stages import Columns, Image, Measures, ModelClient, Role, Sampling, stage, together
from scalecap.stages.split_sentences import split_sentences
from scalecap.stages.verify import check_threshold
from scalecap.text.parsing import complete_sentences, lines
from scalecap.text.refusals import refuses
from scalecap.text.segmentation import word_count
from scalecap.text.templates import Template

GREEDY = Sampling(temperature=0, max_tokens=256)


@stage(side=["answers"], better={"unanswered": "lower", "statements": "neither", "words": "neither"})
@dataclass(kw_only=True, eq=False)
class Grounding:
    """The share of a caption's sentences that the judge finds in the image, and its mean P(yes).

    With a prompt `claims` the judge first splits each sentence into atomic claims, one per line, and
    answers about these instead, as FActScore does with texts (Min et al. 2023, arXiv 2305.14251); a caption
    with a sentence that it refuses to split is null, flagged "refused". The side column `answers` has
    every text with its probability; one that is answered neither yes nor no is `unanswered`, not supported.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ("text",), "claims": ("text",)}

    prompt: Template
    claims: Template | None = None
    threshold: float = 0.5
    words: int | None = None
    model: Role = "judge"

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    async def __call__(
        self, client: ModelClient, *, captions: Columns, image: Image
    ) -> tuple[Measures, list[dict[str, Any]]]:
        measured: dict[str, Any] = {}
        answers: list[dict[str, Any]] = []
        for name, caption in texts(captions, self.words):
            statements = split_sentences(caption)
            if self.claims is not None:
                claims_of = await together(
                    self._split_into_claims(client, sentence, self.claims) for sentence in statements
                )
                if None in claims_of:
                    measured[name] = None
                    continue
                statements = list(dict.fromkeys(claim for claims in claims_of for claim in claims or ()))
            checked = await together(self._check(client, text, image) for text in statements)
            yes = [each["p_yes"] for each in checked if each["p_yes"] is not None]
            measured[name] = {
                "supported": {"count": sum(p >= self.threshold for p in yes), "of": len(statements)},
                "p_yes": {"count": sum(yes), "of": len(yes)},
                "unanswered": {"count": len(statements) - len(yes), "of": len(statements)},
                "statements": len(statements),
                "words": word_count(caption),
            }
            answers += [{"caption": name, **each} for each in checked]
        return measured, answers

    async def _check(self, client: ModelClient, text: str, image: Image) -> dict[str, Any]:
        chosen = await client.choose(
            self.prompt.render(text=text), ("yes", "no"), image=image, model=self.model
        )
        p_yes = chosen.probabilities[0] if chosen.answered else None
        return {"text": text, "p_yes": p_yes, "mass": chosen.known_mass}

    async def _split_into_claims(
        self, client: ModelClient, sentence: str, prompt: Template
    ) -> list[str] | None:
        """The claims of a sentence, itself when the judge names none; None for a refusal."""
        reply = await client.generate(prompt.render(text=sentence), model=self.model, sampling=GREEDY)
        if refuses(reply.text):
            return None
        text = reply.text if reply.finish == "stop" else complete_sentences(reply.text)
        return lines(text) or [sentence]
