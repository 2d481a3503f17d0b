"""Choose one of several texts by the scores of what they say."""

import math
from typing import Any, ClassVar

from scalecap.stages import ModelClient, stage
from scalecap.stages.scores import Score


@stage(side=["ranks"])
class BestOf:
    """The text with the highest mean score; the first on ties.

    `scores` is the side column of a check: of the texts themselves, one each, or with `about`, of parts of
    them (sentences, claims, objects), `about` having the place of each part's text. A score is P(yes), the
    likelihood, or else 1 for what was kept and 0 for what was not; parts that were not checked do not count.
    A text without a part ranks last; when none has one, the first text is taken and flagged "unscored". The
    side column `ranks` has {text, score, taken} of each text, in their order.
    """

    role: ClassVar[None] = None

    async def __call__(
        self, client: ModelClient, *, texts: list[str], scores: list[Score], about: list[int] | None = None
    ) -> tuple[str, list[dict[str, Any]]]:
        places = list(range(len(texts))) if about is None else about
        if len(places) != len(scores):
            raise ValueError(
                f"expected one position per score, got {len(places)} positions for {len(scores)} scores"
            )
        parts: list[list[float]] = [[] for _ in texts]
        for place, score in zip(places, scores, strict=True):
            if score.get("checked") is not False:
                known = [p for p in (score.get("p_yes"), score.get("likelihood")) if p is not None]
                parts[place].append(known[0] if known else float(score["kept"]))
        means = [math.fsum(each) / len(each) if each else None for each in parts]
        if texts and not any(parts):
            client.flag("unscored")
        ranks = [-1.0 if mean is None else mean for mean in means]
        best = ranks.index(max(ranks)) if texts else None
        return "" if best is None else texts[best], [
            {"text": text, "score": mean, "taken": place == best}
            for place, (text, mean) in enumerate(zip(texts, means, strict=True))
        ]
