"""Compares all pipelines on the embedded world at equal cost, with ablations of `pipeline=dense`.

    python -m scalecap.scenes.experiments.comparison DIR

captions 500 unseen scenes with each pipeline at several settings; writes DIR/comparison.md and
DIR/comparison.svg. Replies are cached in DIR/replies, so that the command can be interrupted and repeated.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from scalecap.metrics.scenes import scenes
from scalecap.run.summary import Summary
from scalecap.runner import process_engines
from scalecap.scenes.experiments.harness import caption_rows, parse_arguments, svg_pyplot
from scalecap.scenes.experiments.replies import CachedEngine
from scalecap.stats import Interval, Pair, difference, mean

log = logging.getLogger(__name__)

DEDUPLICATION_STEPS = ("sentences", "known", "new_sentences", "facts", "details")
"""Steps of `pipeline=dense` that remove repetitions."""
LATER_STEPS = {
    "assembled_caption": ("fused_caption", "checked_sentences"),
    "fused_caption": ("checked_sentences",),
}
"""Steps of `pipeline=dense` that an intermediate caption does not need."""
SAMPLED_CAPTION = "pipeline.steps.init_caption.sampling={temperature: 0.7, top_p: 0.9}"
"""The paper's pipeline is greedy; here its first caption is sampled as in the other pipelines."""
BUDGETS = (10, 20, 40, 60, 120)
"""Budgets of `pipeline=dense`, in requests per image."""
OURS = "dense"
TICKS = (100, 200, 500, 1000, 2000)
"""Tokens at the ticks of the plot."""


class Variant(NamedTuple):
    """A pipeline at one setting."""

    method: str
    setting: str
    overrides: tuple[str, ...]
    caption: str = "final_caption"

    @property
    def name(self) -> str:
        return f"{self.method}, {self.setting}" if self.setting else self.method


def methods() -> list[Variant]:
    """All pipelines at their settings, cheapest first."""
    found = [Variant("direct", "", ("pipeline=direct",))]
    for method in ("best_of_n", "self_consistency", "selfval"):
        for samples in (2, 4, 8):
            given = (f"pipeline={method}", f"pipeline.steps.drafts.samples={samples}")
            found.append(Variant(method, f"{samples} drafts", given))
    found += [Variant(method, "", (f"pipeline={method}",)) for method in ("capmas", "look_again")]
    for objects in (1, 2, 4, 20):
        given = ("pipeline=seed", f"pipeline.steps.q_list.max_questions={objects}")
        found.append(Variant("seed", f"{objects} objects", given))
    for check in ("contrast", "verify", "vote", "both"):
        for most in (1, 2, 4, None) if check == "both" else (None,):
            budget = f"pipeline.steps.q_list.budget={'null' if most is None else most}"
            paper = ("pipeline=scalecap", f"pipeline/check={check}", "also=closing_check", SAMPLED_CAPTION)
            setting = f"{check}, {'all' if most is None else most} objects"
            found.append(Variant("scalecap", setting, (*paper, budget), "checked_caption"))
    return found + [dense(str(budget), f"pipeline.budget={budget}") for budget in BUDGETS]


def ablations() -> list[Variant]:
    """`pipeline=dense` at its largest budget, whole and without one part at a time."""
    full = f"pipeline.budget={BUDGETS[-1]}"
    one_draft = ("pipeline.steps.drafts.samples=1", "pipeline.steps.draft_sentences.texts=drafts")
    return [
        dense("whole", full),
        dense("one draft of the whole picture", full, *one_draft, "+pipeline.steps.part_drafts.when=false"),
        dense("without drafts of parts", full, "+pipeline.steps.part_drafts.when=false"),
        dense("without what else there is", full, "+pipeline.steps.missed.when=false"),
        dense("without repair", full, "+pipeline.steps.alternatives.when=false"),
        dense(
            "repeats left in", full, *(f"+pipeline.steps.{step}.near=false" for step in DEDUPLICATION_STEPS)
        ),
        dense(
            "what the fusion loses stays lost",
            full,
            "~pipeline.steps.lost",
            "~pipeline.steps.final_caption.details",
        ),
        dense("without the closing check", full, caption="fused_caption"),
        dense("without a language model", full, caption="assembled_caption"),
        *(
            dense(f"{size} statements a check", full, f"pipeline.steps.golden_sentences.batch={size}")
            for size in (4, 8)
        ),
    ]


def dense(setting: str, *overrides: str, caption: str = "final_caption") -> Variant:
    """`pipeline=dense` at a setting."""
    return Variant(OURS, setting, ("pipeline=dense", *overrides), caption)


class Measurement(NamedTuple):
    """The facts and the cost of a variant's captions."""

    variant: Variant
    facts: list[dict[str, Any]]
    """`scalecap.metrics.scenes.scenes` of each scene's caption; a missing caption has no facts."""
    requests: float
    computed: float
    """Computed prompt tokens; those of an image count once."""
    generated: float

    @property
    def tokens(self) -> float:
        """Computed and generated tokens per image."""
        return self.computed + self.generated

    def each(self, name: str) -> list[Pair]:
        """A measure of each scene; "wrong share" is the share of wrong facts in a caption."""
        if name == "wrong share":
            shares = [each["precision"] for each in self.facts]
            return [(share["of"] - share["count"], share["of"]) for share in shares]
        values = [each[name] for each in self.facts]
        return [(value["count"], value["of"]) if isinstance(value, dict) else (value, 1) for value in values]


def measure(engine: CachedEngine, variant: Variant, count: int, seed: int) -> Measurement:
    """Runs a variant on `count` scenes."""
    engine.reset()
    words = (f"data.count={count}", f"data.seed={seed}", "cache=off", "progress=false")
    rows, summary = caption_rows([*variant.overrides, *words], engine)
    facts = [scenes({"it": row.get(variant.caption) or ""}, row["truth"])["it"] for row in rows]
    total = _spent(summary, variant)
    found = Measurement(variant, facts, *(number / len(rows) for number in total))
    log.info("%s: %s", variant.name, _line(found))
    return found


def _spent(summary: Summary, variant: Variant) -> tuple[int, int, int]:
    """Computed requests, prompt tokens and generated tokens that the evaluated caption needs."""
    later_steps = LATER_STEPS.get(variant.caption, ()) if variant.method == OURS else ()
    counts = [count for step, count in summary.usage.steps.items() if step not in later_steps]
    return (
        sum(count.requests - count.reused for count in counts),
        sum(count.prompt_tokens - count.cached_tokens for count in counts),
        sum(count.generated_tokens for count in counts),
    )


def page(compared: Sequence[Measurement], parts: Sequence[Measurement], count: int, seed: int) -> str:
    """The tables in Markdown."""
    return PAGE.format(
        count=count,
        seed=seed,
        lines="\n".join(_line(each) for each in compared),
        equal="\n".join(
            line for ours in compared if ours.variant.method == OURS for line in _equal(ours, compared)
        ),
        parts="\n".join(_part(each, parts[0]) for each in parts),
    )


def _line(each: Measurement) -> str:
    true, wrong, words = (fmean(count for count, _ in each.each(name)) for name in ("true", "wrong", "words"))
    cells = [
        f"{each.variant.method} | {each.variant.setting} | {true:.1f} | {wrong:.2f}",
        f"{_share(mean(each.each('recall')))} | {_share(mean(each.each('wrong share')))} | {words:.0f}",
        f"{each.requests:.1f} | {each.computed:,.0f} | {each.generated:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _equal(ours: Measurement, compared: Sequence[Measurement]) -> list[str]:
    """A line for each other method, at its setting with the highest recall among those that cost no more."""
    lines = []
    for method in dict.fromkeys(each.variant.method for each in compared if each.variant.method != OURS):
        within = [each for each in compared if each.variant.method == method and each.tokens <= ours.tokens]
        if not within:
            continue
        best = max(within, key=lambda each: sum(count for count, _ in each.each("recall")))
        facts = [difference(ours.each(name), best.each(name)) for name in ("recall", "wrong share")]
        lines.append(
            f"| {ours.variant.setting}, {ours.tokens:,.0f} | {best.variant.name}, {best.tokens:,.0f} "
            f"| {_points(facts[0])} | {_points(facts[1])} |"
        )
    return lines


def _part(each: Measurement, whole: Measurement) -> str:
    cells = [each.variant.setting]
    for name in ("recall", "wrong share"):
        cells.append(_share(mean(each.each(name))))
        cells.append("" if each is whole else _points(difference(each.each(name), whole.each(name))))
    cells += [f"{each.requests:.1f}", f"{each.computed:,.0f}", f"{each.generated:,.0f}"]
    return f"| {' | '.join(cells)} |"


def _share(share: Interval | None) -> str:
    return "" if share is None else f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})"


def _points(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


PAGE = """# Every pipeline on the embedded world

Made by

    python -m scalecap.scenes.experiments.comparison DIR --count {count} --seed {seed}

on {count} scenes that the embedded model never saw, in float32, with the pipelines' own sampling. Facts are
counted once a caption (`evaluate=scenes`); *recall* is true facts of all that there are, *wrong* wrong facts
of those told. Requests and tokens are means per image. Of the prompt tokens those of an image are counted
once, as an engine with a prefix cache computes them. Intervals are of 95 %, over images, differences paired.

| pipeline | setting | true | wrong | recall | wrong | words | requests | prompt tokens | generated |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{lines}

![recall and wrong facts against the tokens of an image](comparison.svg)

## At equal cost

What `dense` tells more than each other pipeline at the setting that tells most among those that take no more
tokens, and how much more of what it tells is wrong, in percentage points.

| dense, tokens | pipeline, tokens | recall | wrong |
| --- | --- | --- | --- |
{equal}

## Without one part

`dense` at its largest budget, and the difference that each part makes, in percentage points.

| | recall | difference | wrong | difference | requests | prompt tokens | generated |
| --- | --- | --- | --- | --- | --- | --- | --- |
{parts}
"""


def plot(compared: Sequence[Measurement], file: Path) -> None:
    """Plots recall and the share of wrong facts against tokens per image, a line for each pipeline."""
    pyplot = svg_pyplot()
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7.2, 7.2), sharex=True)
    methods = dict.fromkeys(each.variant.method for each in compared)
    for number, method in enumerate(methods):
        chosen = sorted(
            (each for each in compared if each.variant.method == method), key=lambda each: each.tokens
        )
        style: dict[str, Any] = {"marker": "osv^D<>pP"[number % 9], "label": method}
        style |= {"color": "black", "linewidth": 2.2} if method == OURS else {"linewidth": 1}
        for axes, name in ((above, "recall"), (below, "wrong share")):
            shares = [mean(each.each(name)) for each in chosen]
            axes.plot(
                [each.tokens for each in chosen],
                [100 * share.mean if share else float("nan") for share in shares],
                **style,
            )
    for axes, title in ((above, "recall: % of all facts"), (below, "wrong: % of the facts told")):
        axes.set_xscale("log")
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.minorticks_off()
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    below.set_xlabel("tokens computed and generated per image (log scale)")
    above.legend(frameon=False, ncols=2)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    arguments = parse_arguments("comparison", __doc__, count=500, seed=11)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    engine = process_engines.run(CachedEngine.open(arguments.folder / "replies"))
    try:
        compared, parts = (
            [measure(engine, variant, arguments.count, arguments.seed) for variant in variants]
            for variants in (methods(), ablations())
        )
    finally:
        process_engines.run(engine.close())
    text = page(compared, parts, arguments.count, arguments.seed)
    (arguments.folder / "comparison.md").write_text(text, encoding="utf-8")
    plot(compared, arguments.folder / "comparison.svg")


if __name__ == "__main__":
    main()
