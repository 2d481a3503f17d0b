"""Keep the clauses that the image makes likelier: ScaleCap's contrastive sentence rating."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

from scalecap.stages import Image, ModelClient, Role, Scored, stage, together
from scalecap.stages.scores import Score
from scalecap.text.content_words import content_words
from scalecap.text.segmentation import Span, clauses, join_kept, overlap, sentences
from scalecap.text.templates import Template

Values = Literal["auto", "logits", "logprobs"]


class Gap(NamedTuple):
    """How much likelier the image makes the token at characters `start:end`."""

    start: int
    end: int
    gap: float


@stage(side=["scores"])
@dataclass(kw_only=True, eq=False)
class Contrast:
    """Rates texts with and without the image and keeps the clauses that the image makes likelier.

    Each text is scored twice as the reply to the same prompt, with and without the image. A token's gap
    is its value with the image minus that without. A clause (a part of a sentence between commas) is kept
    if the largest gap of its content words is above `threshold`; a clause without content words is kept if
    another of its sentence is (ScaleCap, arXiv 2506.19848). `threshold: null` keeps everything and sends no
    requests.

    `texts` is a caption, rated as a whole and reported by sentence, or a list of texts, each rated and
    reported by itself. The prompt is `prompt`, or for answers the column `questions`, one per text.

    `pool: mean` rates a clause by the mean gap of its content words in place of the largest. The largest says
    whether anything in the clause is seen: with one right word in it, an object that is not there passes.

    `words: all` rates every token, including punctuation, as the authors' release does. `values: logits`
    compares raw logits, as that release does, if the engine returns them (transformers, and vLLM with
    `logprobs_mode=raw_logits`); `values: logprobs` compares log-probabilities, a ratio of probabilities.
    They differ at each token by the change of the log-sum-exp over the vocabulary, which log-probabilities
    subtract. `auto` uses logits where available.

    The side column `scores` has {text, kept, remains, clauses: [{text, gap, kept}], tokens: [{text,
    gap}]}; clauses and tokens cover the text once (a token belongs to the clause it begins in), and a gap is
    null if nothing was rated. A text that is empty, or beyond the step's limit or the pipeline's budget, is
    not kept and has `checked: false`.
    """

    variables: ClassVar[dict[str, tuple[str, ...]]] = {"prompt": ()}

    prompt: Template | None = None
    threshold: float | None = 0.0
    words: Literal["content", "all"] = "content"
    values: Values = "auto"
    pool: Literal["max", "mean"] = "max"
    model: Role = "vlm"

    def __post_init__(self) -> None:
        if self.words == "content":
            content_words("loads the lexicon now, before rows start")

    def check(self, columns: Collection[str]) -> str | None:
        if (self.prompt is None) == ("questions" not in columns):
            return (
                "expected either `prompt` or `questions`: write `prompt: ${prompts.caption}` for captions,"
                " or `questions: <column>` for answers"
            )
        return None

    async def __call__(
        self, client: ModelClient, *, texts: str | list[str], image: Image, questions: list[str] | None = None
    ) -> tuple[list[str], list[Score]]:
        given = [texts] if isinstance(texts, str) else texts
        prompts = [self.prompt.render()] * len(given) if self.prompt else questions or []
        if len(prompts) != len(given):
            raise ValueError(f"expected one question per text, got {len(prompts)} for {len(given)} texts")
        places = [place for place, text in enumerate(given) if text.strip() and self.threshold is not None]
        places = places[: client.allowed([2] * len(places))]
        found = await together(self._gaps(client, prompts[place], given[place], image) for place in places)
        gaps_of = dict(zip(places, found, strict=True))
        scores: list[Score] = []
        for place, text in enumerate(given):
            spans = sentences(text)
            groups = [[span] for span in spans] if isinstance(texts, str) else [spans]
            unchecked = self.threshold is not None and place not in gaps_of
            records = [self._record(text, group, gaps_of.get(place, [])) for group in groups]
            scores += [{**record, "checked": False} if unchecked else record for record in records]
        if isinstance(texts, str):
            scores = [score for score in scores if score["text"]]
        return [score["remains"] for score in scores if score["kept"]], scores

    async def _gaps(self, client: ModelClient, prompt: str, text: str, image: Image) -> list[Gap]:
        """The gap of each token."""
        seen, unseen = await together(
            client.score(prompt, text, image=image, model=self.model) for image in (image, None)
        )
        return find_gaps(seen, unseen, self.values)

    def _record(self, text: str, group: Sequence[Span], gaps: Sequence[Gap]) -> Score:
        """The record of consecutive sentences of a text."""
        start, end = (group[0].start, group[-1].end) if group else (0, 0)
        parts, remains = [], []
        for sentence in group:
            rated = self._rate(text, sentence, gaps)
            parts += rated
            remains.append(join_kept([(clause["text"], clause["kept"]) for clause in rated]))
        return {
            "text": text[start:end].strip(),
            "kept": any(remains),
            "remains": " ".join(filter(None, remains)),
            "clauses": parts,
            "tokens": [
                {"text": text[gap.start : gap.end], "gap": round(gap.gap, 6)}
                for gap in gaps
                if start <= gap.start < end
            ],
        }

    def _rate(self, text: str, sentence: Span, gaps: Sequence[Gap]) -> list[dict[str, Any]]:
        """The sentence's clauses, each with its gap, and whether it stays."""
        line = text[slice(*sentence)]
        counted = content_words(line) if self.words == "content" else [Span(0, len(line))]
        tokens = [Span(gap.start - sentence.start, gap.end - sentence.start) for gap in gaps]
        pooled: Callable[[list[float]], float] = fmean if self.pool == "mean" else max
        rated: list[dict[str, Any]] = []
        for start, end in clauses(line):
            words = [Span(max(a, start), min(b, end)) for a, b in counted if min(b, end) > max(a, start)]
            found = [gaps[token].gap for token, _ in overlap(tokens, words)]
            rated.append({"text": line[start:end], "gap": round(pooled(found), 6) if found else None})
        likelier = [
            clause["gap"] is not None and self.threshold is not None and clause["gap"] > self.threshold
            for clause in rated
        ]
        for clause, kept in zip(rated, likelier, strict=True):
            goes_along = clause["gap"] is None and any(likelier)
            clause["kept"] = self.threshold is None or kept or goes_along
        return rated


def find_gaps(seen: Scored, unseen: Scored, values: Values) -> list[Gap]:
    """Each token's value with the image minus that without.

    Raises:
        ValueError: the engine returns no raw logits, or tokenized the text differently the second time.
    """
    if [token[:2] for token in seen.tokens] != [token[:2] for token in unseen.tokens]:
        raise ValueError("the engine tokenized the text differently without the image")
    pairs = list(zip(seen.tokens, unseen.tokens, strict=True))
    logits = [
        Gap(a.start, a.end, a.logit - b.logit)
        for a, b in pairs
        if a.logit is not None and b.logit is not None
    ]
    if values != "logprobs" and len(logits) == len(pairs):
        return logits
    if values == "logits":
        raise ValueError(
            "this engine returns no raw logits: write `values: logprobs`, or use engine=transformers,"
            " or engine=vllm with engine.args.logprobs_mode=raw_logits"
        )
    if any(math.isnan(token.logprob) for token in seen.tokens):
        raise ValueError("this engine returns raw logits only: write `values: logits`")
    return [Gap(a.start, a.end, a.logprob - b.logprob) for a, b in pairs]
