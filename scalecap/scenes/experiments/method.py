"""Evaluates the paper's method and its components on the embedded world.

    python -m scalecap.scenes.experiments.method DIR

captions 500 unseen scenes with every pipeline below, and writes DIR/README.md and DIR/budget.svg. Replies are
cached in DIR/replies, so that the command can be interrupted and repeated.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from scalecap.engines import open_engine
from scalecap.engines.settings import EngineSettings, ModelSettings
from scalecap.metrics.scenes import scenes
from scalecap.run.summary import Summary
from scalecap.runner import process_engines
from scalecap.scenes.experiments.harness import caption_rows, parse_arguments, svg_pyplot
from scalecap.scenes.kinds import KINDS
from scalecap.stats import area

log = logging.getLogger(__name__)

SAMPLED_CAPTION = "pipeline.steps.init_caption.sampling={temperature: 1.0, top_p: 1.0}"
"""At this temperature the model errs as the captions do that it learned from. All else is greedy, as in the
paper, but in the seed's pipeline."""
BUDGETS = (0, 1, 2, 4, None)
CLOSING = ("final_sentences", "checked_sentences", "checked_caption")
FUSING = ("collected_objects", "collected_positions", "final_caption")
LOGPROBS = "log-probabilities"
SCALED = "contrast then verify, budget "
COLOURS = {"assembled": "#1b7837", "fused": "#b35806", "fused, checked": "#2166ac"}
CAPTIONS = {"assembled_caption": "assembled", "final_caption": "fused", "checked_caption": "fused, checked"}


def variants() -> dict[str, tuple[str, ...]]:
    """The overrides of all pipelines by name, in the order of the table."""

    def paper(check: str, *more: str) -> tuple[str, ...]:
        return ("pipeline=scalecap", f"pipeline/check={check}", "also=closing_check", SAMPLED_CAPTION, *more)

    found = {
        "seed": ("pipeline=seed", SAMPLED_CAPTION),
        "seed, greedy": (
            *("pipeline=seed", "also=[closing_check,assembled]", "sampling=greedy", SAMPLED_CAPTION),
        ),
        "contrast": paper("contrast"),
        f"contrast, {LOGPROBS}": paper("contrast", *_rating("values=logprobs")),
        "contrast, mean": paper("contrast", *_rating("pool=mean")),
        f"contrast, mean, {LOGPROBS}": paper("contrast", *_rating("pool=mean", "values=logprobs")),
        "verify": paper("verify"),
        "vote": paper("vote"),
    }
    for budget in BUDGETS:
        value = "null" if budget is None else budget
        found[f"{SCALED}{_label(budget)}"] = paper("both", f"pipeline.steps.q_list.budget={value}")
    return found


def _label(budget: int | None) -> str:
    return "all" if budget is None else str(budget)


def _rating(*settings: str) -> list[str]:
    """Overrides of both steps that rate."""
    steps = ("golden_sentences", "final_details")
    return [f"pipeline.steps.{step}.{setting}" for step in steps for setting in settings]


class Result(NamedTuple):
    """One caption column of one pipeline, means over scenes."""

    pipeline: str
    caption: str
    wrong: float
    true: float
    words: float
    requests: float
    tokens: float
    """Prompt and reply tokens, cached ones included."""


def compare(folder: Path, count: int, seed: int) -> tuple[list[Result], dict[str, float]]:
    """Runs all pipelines; returns the table's lines and the AUC of each rating of sentences."""
    model = ModelSettings(name="scenes", dtype="float32")
    engine = process_engines.run(open_engine(model, EngineSettings(name="transformers")))
    found: list[Result] = []
    facts: dict[str, float] = {}
    try:
        for name, overrides in variants().items():
            words = [f"data.count={count}", f"data.seed={seed}", f"cache.dir={folder / 'replies'}"]
            rows, summary = caption_rows([*overrides, *words, "progress=false"], engine)
            found += _lines(name, rows, summary)
            facts |= _rating_area(name, rows)
            log.info("%s: %s", name, ", ".join(f"{line.caption} {line.true:.2f}" for line in found[-3:]))
    finally:
        process_engines.run(engine.close())
    return found, facts


def _lines(name: str, rows: Sequence[Mapping[str, Any]], summary: Summary) -> list[Result]:
    """A line for each caption that the pipeline wrote; steps after a caption are not part of its cost."""
    excluded_steps = {"init_caption": [step for step in summary.usage.steps if step != "init_caption"]}
    excluded_steps |= {
        "assembled_caption": [*FUSING, *CLOSING],
        "final_caption": [*CLOSING],
        "checked_caption": [],
    }
    lines = []
    for column in excluded_steps if name == "seed" else CAPTIONS:
        facts = [
            scenes({"it": row[column]}, row["truth"])["it"] for row in rows if row.get(column) is not None
        ]
        if not facts:
            continue
        counts = [count for step, count in summary.usage.steps.items() if step not in excluded_steps[column]]
        # Replies cached by an earlier pipeline are part of the cost.
        tokens = sum(count.prompt_tokens + count.generated_tokens for count in counts)
        tokens += sum(count.reused_prompt_tokens + count.reused_generated_tokens for count in counts)
        requests = sum(count.requests for count in counts)
        first = column == "init_caption"
        lines.append(
            Result(
                pipeline="none" if first else name,
                caption="first" if first else CAPTIONS[column],
                wrong=mean(each["wrong"] for each in facts),
                true=mean(each["true"] for each in facts),
                words=mean(each["words"] for each in facts),
                requests=requests / len(rows),
                tokens=tokens / len(rows),
            )
        )
    return lines


def _rating_area(name: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """AUC of a pipeline's rating of the first caption's sentences, if it is one to compare."""
    labels = {
        "contrast": "contrast, raw logits",
        f"contrast, {LOGPROBS}": f"contrast, {LOGPROBS}",
        "contrast, mean": "contrast, mean, raw logits",
        f"contrast, mean, {LOGPROBS}": f"contrast, mean, {LOGPROBS}",
        "verify": "P(yes)",
    }
    if name not in labels:
        return {}
    rated = [
        (_value(score), scenes({"it": score["text"]}, row["truth"])["it"])
        for row in rows
        for score in row["golden_sentences_scores"]
    ]
    true = [value for value, facts in rated if facts["true"] and not facts["wrong"]]
    wrong = [value for value, facts in rated if facts["wrong"]]
    return {labels[name]: area(true, wrong)}


def _value(score: Mapping[str, Any]) -> float:
    if "p_yes" in score:
        return float(score["p_yes"] or 0.0)
    return max((clause["gap"] for clause in score["clauses"] if clause["gap"] is not None), default=-np.inf)


def page(lines: Sequence[Result], areas: Mapping[str, float], count: int, seed: int) -> str:
    """The tables in Markdown."""
    rows = [
        f"| {line.pipeline} | {line.caption} | {line.wrong:.2f} | {line.true:.2f} | {line.words:.1f} "
        f"| {line.requests:.1f} | {line.tokens:,.0f} |"
        for line in lines
    ]
    ratings = [f"| {name} | {value:.3f} |" for name, value in areas.items()]
    facts = {"rows": "\n".join(rows), "ratings": "\n".join(ratings)}
    return PAGE.format(count=count, seed=seed, kinds=len(KINDS), **facts)


PAGE = """# The method on the embedded world

Made by

    python -m scalecap.scenes.experiments.method DIR --count {count} --seed {seed}

on {count} scenes that the embedded model never saw, in float32. The first caption is sampled at
temperature 1, where the model errs as the captions do that it learned from (a sharper distribution hides most
of that), and is the same for all pipelines. All else is greedy, but in the line `seed` at temperature 0.7,
top-p 0.9.

| pipeline | caption | wrong facts | true facts | words | requests | tokens |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

Means per image. Requests and tokens (of prompts and replies, cached ones included) are those without which
the caption would not be there. *fused* is written by the embedded model in its role as language model,
*fused, checked* is what `also=closing_check` leaves of it, *assembled* is `assembled_caption`, made without a
language model.

![true and wrong facts against the budget](budget.svg)

Objects asked about (`pipeline.steps.q_list.budget`), `pipeline/check=both`.

How well a rating tells true sentences of the first caption from those with a wrong fact (area under the ROC
curve; 0.5 is chance):

| rating | area |
| --- | --- |
{ratings}

*mean* is `pool: mean`: a clause is rated by the mean gap of its content words, where the paper takes the
largest, which in many a sentence about an absent thing is that of a right word.

For the contrastive rating the embedded model learned captions without their image, too: what is usual. Its
questions were taught on whole captions and are asked here sentence by sentence. It is a model of six million
parameters in a world of {kinds} things: what helps it need not help a large model, and the other way round.
"""


def plot(lines: Sequence[Result], file: Path) -> None:
    """Plots true and wrong facts against the budget, a line for each way to write the caption."""
    pyplot = svg_pyplot()
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(6.4, 5.6), sharex=True)
    names = list(map(_label, BUDGETS))
    for (caption, colour), marker in zip(COLOURS.items(), "so^", strict=True):
        chosen = {line.pipeline: line for line in lines if line.caption == caption}
        points = [chosen[f"{SCALED}{name}"] for name in names]
        above.plot(names, [point.true for point in points], marker=marker, color=colour, label=caption)
        below.plot(names, [point.wrong for point in points], marker=marker, color=colour, label=caption)
    (first,) = [line for line in lines if line.caption == "first"]
    for axes, value, title in ((above, first.true, "true facts"), (below, first.wrong, "wrong facts")):
        axes.axhline(value, color="grey", linestyle="--", linewidth=1, label="first caption")
        axes.set_ylabel(f"{title} a caption")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xlabel("budget: objects asked about")
    above.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    arguments = parse_arguments("method", __doc__, count=500, seed=11)
    lines, facts = compare(arguments.folder, arguments.count, arguments.seed)
    (arguments.folder / "README.md").write_text(
        page(lines, facts, arguments.count, arguments.seed), encoding="utf-8"
    )
    plot(lines, arguments.folder / "budget.svg")


if __name__ == "__main__":
    main()
