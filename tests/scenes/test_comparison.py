"""The comparison of pipelines on the embedded world."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
pytest.importorskip("matplotlib", reason='needs pip install "scalecap[dev]"')

from runs import Compose

from scalecap.engines.base import Choose, Chosen, Generate, Generated, Image, Prompt, Usage
from scalecap.engines.scripted import Scripted
from scalecap.run.check import check
from scalecap.scenes.experiments.comparison import (
    BUDGETS,
    Measurement,
    Variant,
    ablations,
    main,
    methods,
    page,
)
from scalecap.scenes.experiments.replies import CachedEngine
from scalecap.scenes.world import render, sample

RESULTS = Path(main.__code__.co_filename).parents[1] / "results" / "comparison.md"


@pytest.mark.parametrize("variant", [*methods(), *ablations()], ids=lambda variant: variant.name)
def test_each_pipeline_is_one_that_runs_and_writes_the_caption(compose: Compose, variant: Variant):
    _, pipeline = check(compose(*variant.overrides))
    assert variant.caption in [step.name for step in pipeline.steps]


def caption(variant: Variant, true: int, wrong: int, tokens: float) -> Measurement:
    score = {"true": true, "wrong": wrong, "words": 9}
    score |= {"precision": {"count": true, "of": true + wrong}, "recall": {"count": true, "of": 10}}
    return Measurement(variant, [score] * 3, 1.0, tokens, 0.0)


def test_others_are_compared_at_no_more_tokens_than_ours():
    small, large = (Variant("direct", size, ()) for size in ("small", "large"))
    ours = Variant("dense", "20", ())
    compared = [caption(small, 2, 2, 50), caption(large, 6, 2, 150), caption(ours, 5, 0, 100)]
    text = page(compared, [compared[2], compared[0]], 3, 1)
    assert "| 20, 100 | direct, small, 50 | +30.0 (+30.0 to +30.0) | -50.0 (-50.0 to -50.0) |" in text
    assert "direct, large, 150" not in text
    assert "| direct | large | 6.0 | 2.00 | 60.0% (60.0% to 60.0%) | 25.0%" in text


async def test_replies_are_kept_and_an_images_tokens_are_counted_once(tmp_path: Path):
    prompts: list[str] = []

    class Counted(Scripted):
        async def generate(self, request: Generate) -> Generated:
            prompts.append(request.prompt.text)
            return Generated("yes", "stop", usage=Usage(prompt_tokens=90, generated_tokens=1))

        async def choose(self, request: Choose) -> Chosen:
            prompts.append(request.prompt.text)
            return Chosen((0.9, 0.1), usage=Usage(prompt_tokens=90))

    engine = CachedEngine(Counted(lambda _: ""), tmp_path)
    image = Image.of(render(sample(3)))
    replies = [await engine.generate(Generate(Prompt(text, image))) for text in ("a", "b", "b")]
    assert prompts == ["a", "b"]
    first, *later = (reply.usage.cached_tokens for reply in replies)
    assert first == 0
    assert later[0] == later[1] > 36  # the image's tokens and the system prompt's
    assert (await engine.choose(Choose(Prompt("a", image)))).usage.cached_tokens == later[0]
    engine.reset()
    again = await engine.generate(Generate(Prompt("a", image)))
    assert again == replies[0]
    assert prompts == ["a", "b", "a"]
    await engine.close()


@pytest.mark.slow
def test_one_command_makes_tables_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["comparison", str(tmp_path), "--count", "2"])
    main()
    text = (tmp_path / "comparison.md").read_text()
    assert all(f"| {variant.method} | {variant.setting} |" in text for variant in methods())
    assert all(f"\n| {variant.setting} |" in text for variant in ablations())
    assert ElementTree.parse(tmp_path / "comparison.svg").getroot().tag.endswith("svg")
    # A larger budget sends more requests.
    requests = {
        line.split(" | ")[1]: float(line.split(" | ")[7])
        for line in text.splitlines()
        if line.startswith("| dense |")
    }
    assert list(requests) == [str(budget) for budget in BUDGETS]
    assert all(count <= int(budget) for budget, count in requests.items())
    assert requests[str(BUDGETS[0])] < requests[str(BUDGETS[-1])]


def test_the_results_in_the_docs_are_of_the_pipelines_there_are():
    text = RESULTS.read_text(encoding="utf-8")
    assert all(f"| {variant.method} | {variant.setting} |" in text for variant in methods())
    assert all(f"\n| {variant.setting} |" in text for variant in ablations())
    assert "python -m scalecap.scenes.experiments.comparison DIR --count" in text
