"""How true and how dense captions of the embedded world are, against its ground truth.

    python -m scalecap.scenes.measure RUN

reads the `captions.jsonl` of a run over `data=scenes`; with `--verifier N` it also asks the
embedded model about N labelled statements on scenes it never saw.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scalecap.prompts import Template
from scalecap.scenes.claims import Fact, facts
from scalecap.scenes.grammar import read
from scalecap.scenes.lessons import Curriculum, shipped, statements


class Told(NamedTuple):
    """Facts of one caption, each counted once."""

    facts: frozenset[Fact]
    unread: int
    """Sentences that the reader could make nothing of."""

    @property
    def true(self) -> int:
        return sum(fact.true for fact in self.facts)

    @property
    def wrong(self) -> int:
        return len(self.facts) - self.true


def judge(caption: str, truth: Mapping[str, Any]) -> Told:
    """Read a caption and hold all that it says against the truth."""
    claims, unread = read(caption)
    return Told(frozenset(fact for claim in claims for fact in facts(claim, truth)), unread)


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> dict[str, dict[str, float]]:
    """Facts per caption and share of wrong ones, for each caption column.

    A column of texts is read as one caption. Rows without the column (failed ones) are left out.
    """
    found: dict[str, dict[str, float]] = {}
    rows = list(rows)
    for column in columns:
        told = []
        words = 0
        for row in rows:
            text = row.get(column)
            if text is None:
                continue
            text = " ".join(text) if isinstance(text, list) else text
            words += len(text.split())
            told.append(judge(text, row["truth"]))
        if not told:
            continue
        true, wrong = sum(t.true for t in told), sum(t.wrong for t in told)
        found[column] = {
            "captions": len(told),
            "words": words / len(told),
            "true": true / len(told),
            "wrong": wrong / len(told),
            "wrong share": wrong / max(1, true + wrong),
            "unread": sum(t.unread for t in told) / len(told),
        }
    return found


def by_sort(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, tuple[int, int]]:
    """True and wrong facts of each sort in one column."""
    true: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for row in rows:
        text = row.get(column) or ""
        for fact in judge(" ".join(text) if isinstance(text, list) else text, row["truth"]).facts:
            (true if fact.true else wrong)[fact.sort] += 1
    return {sort: (true[sort], wrong[sort]) for sort in sorted({*true, *wrong})}


async def check_verifier(count: int, prompt: Template, threshold: float = 0.5) -> dict[str, float]:
    """Ask the embedded model about `count` statements, half of them true, on unseen scenes.

    Args:
        prompt: asks yes or no, with the variable `text`.

    Returns:
        Accuracy on true and on false statements and their mean, the balanced accuracy.
    """
    from scalecap.data.images import open_image
    from scalecap.engines import open_engine
    from scalecap.engines.base import Choose, Prompt
    from scalecap.scenes.world import render, sample, unseen
    from scalecap.settings import EngineSettings, ModelSettings

    engine = await open_engine(ModelSettings(name="scenes"), EngineSettings())

    async def right(number: int) -> tuple[bool, bool]:
        scene, true = sample(unseen(99, number // 4)), number % 2 == 0
        text = statements(scene.truth(), random.Random(number // 2), Curriculum(0.1, 0.3))[0 if true else 1]
        picture = open_image(render(scene))
        reply = await engine.choose(Choose(Prompt(prompt.render(text=text), picture)))
        return true, (reply.probabilities[0] >= threshold) == true

    answers = []
    for first in range(0, count, 256):
        answers += await asyncio.gather(*(right(i) for i in range(first, min(count, first + 256))))
    await engine.close()
    hits = [ok for true, ok in answers if true]
    rejections = [ok for true, ok in answers if not true]
    shares = sum(hits) / len(hits), sum(rejections) / len(rejections)
    return {"true accepted": shares[0], "false refused": shares[1], "balanced accuracy": sum(shares) / 2}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scalecap.scenes.measure", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run over data=scenes")
    parser.add_argument("--verifier", type=int, default=0, metavar="N", help="statements to ask about")
    arguments = parser.parse_args()
    with (arguments.run / "captions.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    columns = ("init_caption", "golden_sentences", "final_details", "final_caption")
    found = table(rows, columns)
    print(f"{'column':18}{'captions':>9}{'words':>8}{'true':>8}{'wrong':>8}{'wrong share':>13}{'unread':>8}")
    for column, line in found.items():
        print(
            f"{column:18}{line['captions']:9.0f}{line['words']:8.1f}{line['true']:8.2f}"
            f"{line['wrong']:8.2f}{line['wrong share']:13.1%}{line['unread']:8.2f}"
        )
    for column in ("init_caption", "final_caption"):
        if column not in found:
            continue
        sorts = ", ".join(f"{sort} {t}/{t + w}" for sort, (t, w) in by_sort(rows, column).items())
        print(f"{column}, true of told: {sorts}")
    if arguments.verifier:
        prompt = shipped("verify", "compact")
        for name, share in asyncio.run(check_verifier(arguments.verifier, prompt)).items():
            print(f"{name}: {share:.1%}")


if __name__ == "__main__":
    main()
