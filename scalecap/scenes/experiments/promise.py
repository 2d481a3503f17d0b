"""Validates the guarantees of `scalecap calibrate` on the embedded world.

    python -m scalecap.scenes.experiments.promise DIR

captions 1,000 unseen scenes, which are taken as the population. Then it samples labelled scenes a thousand
times, calibrates thresholds as `scalecap calibrate` does, and computes their error rates in the population.
Writes DIR/promise.md and DIR/promise.svg; replies are cached in DIR/replies, so that the command can be
interrupted and repeated.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scalecap.calibration.calibrate import DEFAULT_PROMISES
from scalecap.calibration.statistics import THRESHOLDS, kept_counts, loosest_threshold, max_wrong_kept
from scalecap.metrics.scenes import scenes
from scalecap.scenes.experiments.harness import caption_rows, parse_arguments, svg_pyplot

log = logging.getLogger(__name__)

CHECKS = {
    "golden_sentences": "sentences of the first caption",
    "final_details": "details",
    "checked_sentences": "sentences of the final caption",
}
LABELS = (50, 100, 200, 400)
DRAWS = 1_000
CONFIDENCE = 0.95
COLOURS = ("#762a83", "#2166ac", "#1b7837", "#b35806", "#b2182b")


class World(NamedTuple):
    """All statements of a check; lists of arrays (statements,), one per scene."""

    p_yes: list[np.ndarray]
    true: list[np.ndarray]


class Rates(NamedTuple):
    """Rates in the population by threshold, arrays in the order of `THRESHOLDS`."""

    wrong: np.ndarray
    """Error rate of a kept statement drawn at random from a random scene, which promises bound."""
    pooled: np.ndarray
    """Error rate among all kept statements."""
    true_kept: np.ndarray
    """Share of true statements that are kept."""


class Result(NamedTuple):
    """The results for a check, a promise and a number of labels, over all samples."""

    check: str
    wrong: float
    labels: int
    found: float
    """Share of samples in which a threshold was found."""
    broken: float
    """Share of samples whose threshold violates the promise in the population."""
    broken_pooled: float
    """The same for the pooled error rate."""
    naive: float
    """Share of samples in which the lowest threshold that fits the labels violates it."""
    true_kept: float
    """Mean share of true statements kept; 0 in a sample without a threshold."""
    possible: float
    """The same for the lowest threshold that keeps the promise in the population; NaN if there is none."""


def captioned_scenes(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """The captioned and checked rows of `count` scenes; replies are cached in `folder`."""
    overrides = (
        *("also=closing_check", f"data.count={count}", f"data.seed={seed}", "engine=transformers"),
        f"cache.dir={folder / 'replies'}",
    )
    rows, summary = caption_rows(overrides)
    if summary.status != "finished":
        raise SystemExit(f"{summary.status} after {summary.done} scenes; resume with the same command")
    return rows


def world(rows: Sequence[Mapping[str, Any]], check: str) -> World:
    """A check's statements with their P(yes) and truth; a text that can't be parsed counts as wrong."""
    found = World([], [])
    for row in rows:
        scores = row[f"{check}_scores"] or []
        if scores:
            p_yes = [-1.0 if score["p_yes"] is None else score["p_yes"] for score in scores]
            facts = [scenes({"it": score["text"]}, row["truth"])["it"] for score in scores]
            found.p_yes.append(np.array(p_yes))
            found.true.append(np.array([bool(each["true"]) and not each["wrong"] for each in facts]))
    return found


def rates(world: World) -> Rates:
    """The rates of each threshold in the population."""
    each = [kept_counts(p_yes, true) for p_yes, true in zip(world.p_yes, world.true, strict=True)]
    kept, wrong = (np.array(parts, float) for parts in zip(*each, strict=True))
    sizes = np.array([len(p_yes) for p_yes in world.p_yes])[:, None]
    with np.errstate(invalid="ignore"):
        return Rates(
            wrong=(wrong / sizes).sum(0) / (kept / sizes).sum(0),
            pooled=wrong.sum(0) / kept.sum(0),
            true_kept=(kept - wrong).sum(0) / sum(true.sum() for true in world.true),
        )


def lines(check: str, world: World, draws: int, seed: int = 0) -> Iterator[Result]:
    """Calibrates on samples of labelled scenes, drawn independently with replacement."""
    rng = np.random.default_rng(seed)
    known = rates(world)
    for labels in LABELS:
        tests = {wrong: max_wrong_kept(labels, wrong, CONFIDENCE) for wrong in DEFAULT_PROMISES}
        safe: dict[float, list[int]] = {wrong: [] for wrong in DEFAULT_PROMISES}
        naive: dict[float, list[int]] = {wrong: [] for wrong in DEFAULT_PROMISES}
        for _ in range(draws):
            drawn = rng.integers(len(world.p_yes), size=labels)
            places = [rng.integers(len(world.p_yes[scene])) for scene in drawn]
            pairs = list(zip(drawn, places, strict=True))
            kept, kept_wrong = kept_counts(
                np.array([world.p_yes[scene][place] for scene, place in pairs]),
                np.array([world.true[scene][place] for scene, place in pairs]),
            )
            for wrong, most in tests.items():
                found = loosest_threshold(kept, kept_wrong, most)
                if found is not None:
                    safe[wrong].append(found)
                seems = np.flatnonzero((kept > 0) & (kept_wrong <= wrong * kept))
                if len(seems):
                    naive[wrong].append(int(seems[-1]))
        for wrong in DEFAULT_PROMISES:
            keeps = known.true_kept[known.wrong <= wrong]
            yield Result(
                check=check,
                wrong=wrong,
                labels=labels,
                found=len(safe[wrong]) / draws,
                broken=float((known.wrong[safe[wrong]] > wrong).sum()) / draws,
                broken_pooled=float((known.pooled[safe[wrong]] > wrong).sum()) / draws,
                naive=float((known.wrong[naive[wrong]] > wrong).sum()) / draws,
                true_kept=float(known.true_kept[safe[wrong]].sum()) / draws,
                possible=float(keeps.max()) if len(keeps) else float("nan"),
            )


def page(found: Sequence[Result], worlds: Mapping[str, World], count: int, seed: int, draws: int) -> str:
    """The content of promise.md."""
    rows = [
        f"| {CHECKS[line.check]} | {line.wrong:.0%} | {line.labels} | {line.found:.0%} | {line.broken:.1%} "
        f"| {line.naive:.0%} | {line.broken_pooled:.1%} | {_percent(line.true_kept)} "
        f"| {_percent(line.possible)} |"
        for line in found
    ]
    about = []
    for check, made in worlds.items():
        known, at = rates(made), int(np.argmin(np.abs(THRESHOLDS - 0.5)))
        about.append(
            f"| {CHECKS[check]} | {len(made.p_yes)} | {sum(map(len, made.p_yes)):,} "
            f"| {known.wrong[-1]:.1%} | {known.wrong[at]:.1%} | {known.true_kept[at]:.1%} |"
        )
    worst = max(found, key=lambda line: line.broken)
    slack = 3 * (0.05 * 0.95 / draws) ** 0.5
    return PAGE.format(
        count=count,
        seed=seed,
        draws=draws,
        worlds="\n".join(about),
        rows="\n".join(rows),
        worst=f"{worst.broken:.1%}",
        worst_at=f"{CHECKS[worst.check]}, {worst.wrong:.0%} promised, {worst.labels} labels",
        slack=f"{slack:.1%}",
    )


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{share:.0%}"


PAGE = """# Do promises hold?

Made by

    python -m scalecap.scenes.experiments.promise DIR --count {count} --seed {seed} --draws {draws}

{count} scenes that the embedded model never saw are captioned (`also=closing_check`, in float32), and are
taken as the world: whether a statement is true is known of all of them. Labelled scenes are then drawn from
it, one by one, and of each one statement, {draws:,} times for each number of labels. From the labels of a
draw come the threshold that `scalecap calibrate` finds with 95 % confidence, and the naive one: the loosest
at which the labels have no larger share of wrong ones than promised. Each is looked up in the whole world:
*broken* says in what share of the draws more of what is kept is wrong than was promised. A promise allows
5 %, and this number of draws may show {slack} more by chance. **The largest share seen is {worst}**
({worst_at}).

![in what share of the draws the promise is broken, and what share of the truth is kept](promise.svg)

The world, with all statements kept, and with the threshold 0.5:

| statements | scenes | statements | wrong of all | wrong of those kept at 0.5 | true ones kept at 0.5 |
| --- | --- | --- | --- | --- | --- |
{worlds}

| statements | promised | labels | found | broken | broken, naive | broken, pooled | true kept | possible |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

*found*: the share of the draws in which there is a threshold; with few labels a small share can't be shown,
and nothing is promised. *broken, pooled* counts every statement once, where the promise counts every image
once. *true kept*: the mean share of the true statements that are kept; a draw without a threshold keeps none.
*possible*: the same of the loosest threshold that keeps the promise, which only somebody who knows the whole
world can choose.
"""


def plot(found: Sequence[Result], file: Path) -> None:
    """Plots the share of broken promises and that of true statements kept, a column for each check."""
    pyplot = svg_pyplot()
    from matplotlib.lines import Line2D

    checks = list(dict.fromkeys(line.check for line in found))
    figure, axes = pyplot.subplots(
        *(2, len(checks)), figsize=(9.6, 6), sharex=True, sharey="row", squeeze=False
    )
    for (above, below), check in zip(axes.T, checks, strict=True):
        for wrong, colour in zip(DEFAULT_PROMISES, COLOURS, strict=True):
            mine = [line for line in found if line.check == check and line.wrong == wrong]
            labels = [line.labels for line in mine]
            for draws, values, style in (
                (above, [line.broken for line in mine], {"marker": "o"}),
                (above, [line.naive for line in mine], {"linestyle": ":"}),
                (below, [line.true_kept for line in mine], {"marker": "o"}),
                (below, [line.possible for line in mine], {"linestyle": "--", "linewidth": 1}),
            ):
                draws.plot(labels, 100 * np.array(values), color=colour, **style)
        above.axhline(5, color="grey", linewidth=1)
        above.set_title(CHECKS[check], fontsize=10)
        below.set_xlabel("labels")
        below.set_xscale("log")
        below.set_xticks(LABELS, [str(each) for each in LABELS])
        below.minorticks_off()
        for each in (above, below):
            each.spines[["top", "right"]].set_visible(False)
            each.set_ylim(0, 100)
    axes[0][0].set_ylabel("promise broken, % of draws")
    axes[1][0].set_ylabel("true statements kept, %")
    shown = [
        Line2D([], [], color=c, label=f"{w:.0%} promised")
        for w, c in zip(DEFAULT_PROMISES, COLOURS, strict=True)
    ]
    shown += [
        Line2D([], [], color="black", marker="o", label="calibrated"),
        Line2D([], [], color="black", linestyle=":", label="naive"),
        Line2D([], [], color="black", linestyle="--", linewidth=1, label="possible"),
        Line2D([], [], color="grey", label="5 % allowed"),
    ]
    figure.legend(handles=shown, loc="lower center", ncols=5, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    arguments = parse_arguments("promise", __doc__, count=1_000, seed=21, draws=DRAWS)
    rows = captioned_scenes(arguments.folder, arguments.count, arguments.seed)
    write(rows, arguments.folder, arguments.count, arguments.seed, arguments.draws)


def write(rows: Sequence[Mapping[str, Any]], folder: Path, count: int, seed: int, draws: int) -> None:
    """Writes the page and the plot."""
    worlds = {check: world(rows, check) for check in CHECKS}
    found = []
    for check, made in worlds.items():
        log.info("%s: %d draws for each of %s labels", check, draws, LABELS)
        found += list(lines(check, made, draws))
    (folder / "promise.md").write_text(page(found, worlds, count, seed, draws), encoding="utf-8")
    plot(found, folder / "promise.svg")


if __name__ == "__main__":
    main()
