"""`evaluate=` through the command line: several metrics at once, existing captions, a judge of its own."""

import json
import random
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from runs import Command, Compose, captions

from scalecap.config.settings import SettingsError
from scalecap.engines.base import Choose, Request
from scalecap.engines.scripted import Scripted
from scalecap.runner import RunError, run
from scalecap.scenes.claims import facts
from scalecap.scenes.grammar import read
from scalecap.scenes.kinds import KINDS
from scalecap.scenes.world import render, sample, unseen_seed


def capsbench(folder: Path, count: int) -> str:
    """Scenes in the schema of playgroundai/CapsBench, as parquet: questions and others' captions."""
    rows: dict[str, list[Any]] = {name: [] for name in ("image", "questions", "sonnet", "gpt-4o")}
    for index in range(count):
        scene = sample(unseen_seed(3, index))
        truth, dice = scene.truth(), random.Random(index)
        there = [thing["kind"] for thing in truth["things"]]
        absent = dice.choice([kind for kind in KINDS if kind not in there])
        path = folder / f"{index}.png"
        render(scene, 84).save(path)
        rows["image"].append(str(path))
        rows["questions"].append(
            [
                {"question": f"Is there a {kind} in the picture?", "answer": answer, "category": category}
                for kind, answer, category in (
                    (there[0], "yes", "entity"),
                    (there[1], "yes", "general"),
                    (absent, "no", "entity"),
                )
            ]
        )
        rows["sonnet"].append(f"There is a {there[0]}. There is a {there[1]}. Nothing else is there.")
        rows["gpt-4o"].append(f"There is a {there[0]}.")
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(folder / "set" / "train.parquet")
    return f"data.path={folder}/set"


def reader(request: Request) -> str:
    """Answers from the caption alone, by its grammar."""
    assert isinstance(request, Choose)
    assert request.prompt.image is None
    caption, question = re.findall(r'"""\n(.*)\n"""\nQuestion: (.*)', request.prompt.text)[0]
    kind = re.findall(r"Is there an? (\w+)", question)[0]
    if any(claim.kind == kind for claim in read(caption)):
        return "yes"
    return "no" if "Nothing else" in caption else "n/a"


def test_capsbench_of_given_captions_without_a_pipeline(compose: Compose, tmp_path: Path):
    judge = Scripted(reader)
    settings = compose(
        "pipeline=none",
        "data=capsbench",
        capsbench(tmp_path, 6),
        "evaluate=[capsbench,density]",
        "evaluate.caption=[sonnet,gpt-4o]",
    )
    summary = run(settings, engines={"judge": judge})
    assert summary.done == 6
    metrics = summary.metrics
    assert metrics["capsbench.sonnet.accuracy"].mean == 1
    assert metrics["capsbench.gpt-4o.accuracy"].mean == pytest.approx(1 / 3)
    assert metrics["capsbench.gpt-4o.unanswered"].mean == pytest.approx(2 / 3)
    assert metrics["capsbench.gpt-4o.category.general"].mean == 0
    assert metrics["density.sonnet.words"].mean > metrics["density.gpt-4o.words"].mean
    assert summary.usage.steps["capsbench"].requests == 6 * 3 * 2
    assert list(summary.models) == ["judge"]
    screen = summary.screen()
    assert re.search(r"^  capsbench +sonnet +gpt-4o$", screen, re.M)
    assert re.search(r"^    accuracy +1 \(1 to 1\) +0.333 \(", screen, re.M)
    assert "category" not in screen
    row = captions()[0]
    assert row["capsbench"]["sonnet"]["accuracy"] == {"count": 3, "of": 3}
    assert row["capsbench_answers"][0]["answer"] == "yes"


def test_a_run_without_a_model_opens_none(typed: Command, opened: list[Any], tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"image": "absent.png", "alt": "A dog on a couch."}\n')
    words = ("pipeline=none", "data=jsonl", "data.path=rows.jsonl", "output=out")
    assert typed(*words, "evaluate=density", "evaluate.caption=alt") == 0
    assert opened == []
    assert captions("out")[0]["density"]["alt"]["content"] == 2


def test_the_caption_column_is_required(compose: Compose, typed: Command, capsys: Any):
    with pytest.raises(SettingsError, match=r"evaluate\.caption=COLUMN is required"):
        compose("pipeline=none", "evaluate=density")
    assert typed("evaluate=density", "evaluate.caption=final_captoin", "check=true") == 1
    assert "did you mean 'final_caption'" in capsys.readouterr().err
    with pytest.raises(RunError, match="has no steps"):
        run(compose("pipeline=none"))


def test_a_separate_judge_is_opened_and_named(typed: Command, opened: list[Any], capsys: Any):
    words = ("evaluate=grounding", "data.limit=2", "cache=off")
    assert typed(*words, "output=own") == 0
    assert "self-preference bias" in capsys.readouterr().out
    assert [model.name for model in opened] == ["scenes"]
    assert typed(*words, "output=other", "model.judge.name=other") == 0
    assert "self-preference bias" not in capsys.readouterr().out
    assert {model.name for model in opened} == {"scenes", "other"}
    assert "judge" in json.loads(Path("other/summary.json").read_text())["models"]


def test_a_metric_changes_no_request_of_the_pipeline(compose: Compose, engines: dict[str, Scripted]):
    plain = run(compose("data.limit=3"), engines=engines)
    again = run(compose("data.limit=3", "evaluate=[scenes,grounding]", "output=more"), engines=engines)
    assert again.usage.steps["init_caption"].reused == again.usage.steps["init_caption"].requests
    steps = plain.usage.steps
    assert all(again.usage.steps[name].requests == steps[name].requests for name in steps)
    assert again.usage.total.requests > plain.usage.total.requests


def test_one_row_that_cannot_be_judged_keeps_its_caption(
    compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    (tmp_path / "rows.jsonl").write_text(
        '{"image": "1.png", "caption": "A dog.", "objects": ["dog"]}\n'
        '{"image": "2.png", "caption": "A cat.", "objects": 3}\n'
    )
    summary = run(
        compose(
            "pipeline=none",
            "data=jsonl",
            f"data.path={tmp_path}/rows.jsonl",
            "evaluate=[chair,density]",
            "evaluate.caption=caption",
        ),
        engines={},
    )
    assert (summary.done, summary.failed) == (1, 1)
    assert summary.metrics["chair.caption.recall"].rows == 1
    assert summary.metrics["density.caption.words"].rows == 2


def test_the_embedded_model_is_measured(compose: Compose):
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    careless = "pipeline.steps.init_caption.sampling={temperature: 1.0, top_p: 1.0}"
    summary = run(
        compose(
            "engine=transformers", "data.limit=12", "evaluate=[scenes,grounding,scenes_verifier]", careless
        )
    )
    found = {name: each.mean for name, each in summary.metrics.items()}
    assert found["scenes.final_caption.precision"] > found["scenes.init_caption.precision"] + 0.1
    assert found["scenes.final_caption.recall"] > found["scenes.init_caption.recall"] + 0.1
    assert found["scenes.golden_sentences.precision"] > found["scenes.init_caption.precision"] + 0.1
    assert found["verifier.auc"] > 0.9
    assert found["verifier.accuracy"] > 0.85
    assert found["grounding.final_caption.supported"] > 0.85
    row = captions()[0]
    stated = {fact for claim in read(row["final_caption"]) for fact in facts(claim, row["truth"])}
    assert row["scenes"]["final_caption"]["true"] == sum(fact.true for fact in stated)
