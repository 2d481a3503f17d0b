"""Every file under conf/ composes, says what it is, and makes a pipeline that runs."""

import itertools
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip
import datasets
import pytest
from image_files import tar
from PIL import Image as Pillow
from runs import Compose, captions, roles

from scalecap.config.settings import CONF
from scalecap.engines.base import Choose, Score
from scalecap.engines.scripted import Scripted
from scalecap.interpreter.pipeline import Pipeline
from scalecap.runner import run
from scalecap.stages.split_sentences import split_sentences

FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
RUN = [file for file in FILES if file.parts[0] != "hydra" and file != Path("runner/ray.yaml")]
"""Those that choose what a run does; a cluster has tests of its own."""


def test_the_glob_finds_the_groups():
    assert {file.parts[0] for file in FILES if len(file.parts) > 1} >= {
        "data",
        "engine",
        "model",
        "pipeline",
        "prompts",
    }


@pytest.mark.parametrize("file", RUN, ids=str)
def test_each_file_composes_and_its_pipeline_runs(
    file: Path, compose: Compose, engines: dict[str, Scripted], tmp_path: Path
):
    overrides = ["progress=false", "data.limit=1"]
    group = file.parent.as_posix()
    if group != ".":
        overrides.append(f"{group}={file.stem}")
    if group == "pipeline/check":
        overrides.append("pipeline=scalecap")
    given = {
        "model/own.yaml": "model.vlm.name=any",
        "engine/openai.yaml": "engine.base_url=http://localhost/v1",
    }
    overrides += [override for name, override in given.items() if file == Path(name)]
    if group == "data":
        overrides += _data(file.stem, tmp_path)
    if group == "evaluate":
        overrides += [] if "scenes" in file.stem else _data("jsonl", tmp_path, COLUMNS)
    if group == "labels":
        overrides += _data("jsonl", tmp_path, COLUMNS)
    if file in (Path("also/context.yaml"), Path("prompts/caption/context.yaml")):
        overrides += [*_data("jsonl", tmp_path, COLUMNS), "data.context=[text]", "also=context"]
    if file == Path("evaluate/labelled.yaml"):
        Path("labels.jsonl").write_text(LABEL)
    if file == Path("evaluate/clipscore.yaml"):
        overrides.append(f"pipeline.steps.clipscore.weights={clip.make(tmp_path)}")
    if file == Path("pipeline/none.yaml"):
        overrides += ["evaluate=density", *_data("jsonl", tmp_path, COLUMNS), "evaluate.caption=references"]
    if group.startswith("prompts/"):
        role = file.parent.name
        overrides += USED_BY.get(role, [])
        if role in ("capsbench", "qa"):
            overrides += _data("jsonl", tmp_path, COLUMNS)
    settings = compose(*overrides)
    if group.startswith("prompts/"):
        assert repr(settings.prompts[role]) in repr(settings.pipeline.steps)
    summary = run(settings, engines=engines)
    assert (summary.done, summary.failed) == (1, 0)
    if file.stem == "none":
        assert not summary.dropped
        return
    if group == "labels":
        assert summary.usage.total.requests == sum(summary.kept.values()) + sum(summary.dropped.values())
        return
    stages = {step["stage"] for step in settings.pipeline.steps.values()}
    assert summary.dropped.total() >= 1 or "verify" not in stages  # no other stage drops anything by itself
    assert summary.dropped["final_details"] == 0
    if group == "evaluate":
        assert any(name.startswith(f"{file.stem.removeprefix('scenes_')}.") for name in summary.metrics)


USED_BY = {
    "choose": [
        *("pipeline=dense", "pipeline.steps.repaired.statement_prompt=null"),
        "+pipeline.steps.repaired.prompt=${prompts.choose}",
    ],
    **{role: ["pipeline=dense"] for role in ("alternatives", "caption_part", "missed", "verify_batch")},
    "region": ["pipeline=look_again"],
    "correct": ["pipeline=capmas"],
    "name_one": ["pipeline=selfval"],
    "objects": ["pipeline=selfval"],
    "alt_text": ["also=alt_text"],
    "index_text": ["also=index_text"],
    "length": ["also=lengths"],
    "structured": ["also=structured"],
    "collect_objects": ["pipeline=scalecap"],
    "collect_positions": ["pipeline=scalecap"],
    "capsbench": ["evaluate=capsbench"],
    "claims": ["pipeline=capmas"],
    "grounding": ["evaluate=grounding"],
    "qa": ["evaluate=qa"],
}
"""What uses a role's prompt, where the default pipeline does not."""
COLUMNS = {
    "question": "Is there a dog?",
    "answer": "yes",
    "questions": [
        {"question": "Which is it?", "answer": "yes", "category": "entity", "choices": ["yes", "no"]},
    ],
    "objects": ["dog"],
    "statements": [{"text": "A dog.", "label": True}, {"text": "A cat.", "label": False}],
    "references": "A brown dog.",
    "text": "A cat.",
    "label": "no",
    "description_tag": "A dog. A <Hallucination>cat</Hallucination>.",
    "caption": "A cat.",
    "annotation": "Incorrect",
}
"""All that the metrics and the labels read."""


def _data(source: str, folder: Path, columns: dict[str, Any] | None = None) -> list[str]:
    """A data set of one image in the form that `data=<source>` reads."""
    file = folder / "pictures" / "one.png"
    file.parent.mkdir()
    Pillow.linear_gradient("L").save(file)
    match source:
        case "jsonl":
            (folder / "rows.jsonl").write_text(json.dumps({"image": "pictures/one.png", **(columns or {})}))
            return ["data=jsonl", f"data.path={folder}/rows.jsonl"]
        case "folder":
            return [f"data.path={file.parent}"]
        case "hub" | "capsbench" | "parquet":
            rows = datasets.Dataset.from_dict({"image": [str(file)]})
            rows.cast_column("image", datasets.Image()).to_parquet(folder / "parquet" / "train.parquet")
            return [f"data.path={folder}/parquet"]
        case "webdataset":
            (folder / "0.tar").write_bytes(tar(("0001.png", file.read_bytes())))
            return [f"data.path={folder}/*.tar"]
    return []


LABEL = '{"row_id": "0", "step": "golden", "text": "A dog.", "verdict": "yes", "run": "made by hand"}\n'


@pytest.mark.parametrize("file", FILES, ids=str)
def test_each_file_opens_as_a_page_whose_commands_compose(file: Path, compose: Compose):
    lines = [
        line.removeprefix("# ") for line in (CONF / file).read_text().splitlines() if line.startswith("# ")
    ]
    if lines[0].startswith("@package"):
        lines = lines[1:]
    assert lines[0].endswith(".") or lines[0].endswith("?")
    Path("mine.txt").write_text("gadget\n")  # which evaluate=chair's command names
    for name in ("labels.jsonl", "mine.jsonl", "yours.jsonl"):  # evaluate=labelled's
        Path(name).write_text(LABEL)
    starts = [line.split(":")[0] for line in lines[1:4]]
    assert starts == ["Needs", "Command", "Override"]
    for line in lines[2:4]:
        program, *words = shlex.split(line.split(":", 1)[1])[2:]
        assert program == "scalecap"
        settings = compose(*(word for word in words if not word.startswith(("--", "output="))))
        if file.parts[0] != "hydra" and "pipeline.imports" not in line:
            Pipeline.build(settings.pipeline.steps, None, sampling=settings.sampling)


SEED = "Describe the fine-grained content of the image"
COMPACT = "Describe the picture."


@pytest.mark.parametrize(
    ("overrides", "caption", "verify"),
    [
        ("", COMPACT, "Is it true?"),
        ("model=scenes prompts=seed", SEED, "Given the image"),
        ("prompts=seed", SEED, "Given the image"),
        ("prompts/verify=strict", COMPACT, "Check this"),
        ("prompts=seed prompts/verify=strict", SEED, "Check this"),
        ("model=scenes prompts=compact prompts/verify=seed", COMPACT, "Given the image"),
        ("model=qwen2.5-vl-3b", SEED, "Given the image"),
        ("model=qwen2.5-vl-7b prompts/verify=strict", SEED, "Check this"),
        ("model=qwen2.5-vl-7b prompts=compact", COMPACT, "Is it true?"),
        ("model.vlm.name=/models/mine prompts.caption=What?", "What?", "Is it true?"),
    ],
)
def test_prompts_follow_the_model_unless_given(compose: Compose, overrides: str, caption: str, verify: str):
    prompts = compose(*overrides.split()).prompts
    assert prompts["caption"].startswith(caption)
    assert prompts["verify"].startswith(verify)


def test_compact_prompts_are_those_the_embedded_model_was_trained_on(compose: Compose):
    assert (
        compose().prompts.items()
        >= {
            "caption": "Describe the picture.",
            "verify": "Is it true? {{ text }} Answer yes or no.",
            "verify_details": "Is it true? {{ text }} Answer yes or no.",
            "questions": "List the things in: {{ sentence }}",
            "fuse": "Join into one description:\n{{ context }}\n{{ object_info }}"
            "{% if position_info != object_info %}\n{{ position_info }}{% endif %}",
            "collect_objects": "Collect what each thing looks like:\n{{ blocks }}",
            "collect_positions": "Collect where each thing is:\n{{ blocks }}",
            # These two it was not trained on; it joins what it is given, which it was trained on.
            "alt_text": "Join into one description:\n{{ sentences }}\n{{ details }}",
            "index_text": "Join into one description:\n{{ sentences }}\n{{ details }}",
            "grounding": "Is it true? {{ text }} Answer yes or no.",
        }.items()
    )


def test_seed_prompts_are_the_seeds(compose: Compose):
    prompts = compose("prompts=seed").prompts
    assert prompts["caption"] == (
        "Describe the fine-grained content of the image, including scenes, objects, relationships,"
        " instance location, and any text present."
    )
    assert prompts["verify"] == (
        "Given the image, is the description '{{ text }}' directly supported by visual evidence?"
        " Answer strictly yes or no."
    )
    assert prompts["verify_details"] == (
        "Given the image, is the statement '{{ text }}' grounded in the image and not generic?"
        " Answer strictly yes or no."
    )
    assert prompts["questions"].startswith(
        "Your task is to convert each Object mentioned in a given sentence into a corresponding instruction,"
        ' and all the resulting instructions are output as "Describe more details about the [Object]".'
        " Ensure your instructions do not cover the raw question, options, or thought process of answering"
        " the instructions. You should ignore the Objects that appear in some inferences, such as the"
        " sentences that begins with 'it might be' or 'there are probably'.\n"
    )
    assert prompts["fuse"] == (
        "Basic Context:\n{{ context }}\nObject Information:\n{{ object_info }}\n"
        "Position Information:\n{{ position_info }}\n"
        "Following the logic of the above Basic Context, organize all details provided in Object Information"
        " and Position Information to give a very comprehensive description about the image. Do not include"
        " any analysis or your opinions."
    )
    shown = set(prompts["questions"].splitlines())
    assert {"Describe more details about the bedroom.", "Describe more details about the lemons."} <= shown
    assert prompts["questions"].count("Instructions:") == 6
    assert prompts["questions"].endswith("Sentence:\n{{ sentence }}\nInstructions:")


def test_the_llm_is_the_vlm_unless_given(compose: Compose):
    one = compose("model=qwen2.5-vl-3b", "model.vlm.revision=abc").by_role()
    assert one["llm"] == one["vlm"]
    two = compose("model=qwen2.5-vl-3b", "model.llm.name=other").by_role()
    assert (two["vlm"].model.name, two["llm"].model.name) == ("Qwen/Qwen2.5-VL-3B-Instruct", "other")


def test_the_seed_splits_as_the_seed_does(compose: Compose):
    steps = compose("pipeline=seed").pipeline.steps
    assert steps["sentences"]["rule"] == "seed"
    assert steps["golden_sentences"]["mode"] == steps["final_details"]["mode"] == "choose"


def test_the_paper_is_greedy_unless_overridden(compose: Compose):
    assert compose("pipeline=scalecap").sampling.temperature == 0
    assert compose("pipeline=scalecap", "sampling=seed").sampling.temperature == 0.7
    assert compose().sampling.temperature == 0.7
    steps = compose("pipeline=scalecap").pipeline.steps
    assert steps["final_caption"]["sampling"]["repetition_penalty"] == 1.05


@pytest.mark.parametrize(
    ("check", "requests"),
    # A caption, a question, two answers and three texts about them; then the checks.
    [
        ("contrast", 7 + 2 + 4),
        ("verify", 7 + 2 + 2),
        ("both", 7 + 2 + 1 + 4 + 2),
        ("vote", 7 + 2 + 2 + 4 + 2),
    ],
)
def test_every_check_composes_with_questions(
    compose: Compose, engines: dict[str, Scripted], check: str, requests: int
):
    more = "also=[closing_check,alt_text,index_text]"
    summary = run(
        compose("pipeline=scalecap", f"pipeline/check={check}", more, "data.limit=1"), engines=engines
    )
    assert (summary.done, summary.failed) == (1, 0)
    (row,) = captions()
    assert row["golden_sentences"] == ["There is a dog."]
    assert row["blocks"] == [
        {
            "sentence": "There is a dog.",
            "details": [
                {"object": "the dog", "position": position, "text": text, "p_yes": p_yes}
                for position, text in ((False, "The dog is brown."), (True, "The dog is at the left."))
                for p_yes in [None if check == "contrast" else 0.9]
            ],
        }
    ]
    assert row["collected_objects"] == row["collected_positions"] == ["A dog, brown."]
    assert row["final_caption"] == row["checked_caption"] == "A dog, brown."
    assert row["assembled_caption"] == "There is a dog. The dog is brown. The dog is at the left."
    assert row["alt_text"] == row["index_text"] == "A dog, brown."
    # the closing check is of one sentence
    assert summary.usage.total.requests == requests + 1 + 2


@pytest.mark.parametrize(
    ("pipeline", "requests", "final"),
    [
        ("direct", {"final_caption": 1}, "There is a dog. There is a cat."),
        (
            "best_of_n pipeline.steps.drafts.samples=3",
            {"drafts": 3, "golden_sentences": 3},
            "There is a dog. It is brown.",
        ),
        (
            "self_consistency pipeline.steps.drafts.samples=3",
            {"drafts": 3, "atomic_claims": 2, "golden_claims": 3},
            "There is a dog. It is brown.",
        ),
        (
            "selfval pipeline.steps.drafts.samples=3",
            {"drafts": 3, "objects": 2, "seen_objects": 2},
            "There is a dog. It is brown.",
        ),
        (
            "capmas",
            {"init_caption": 1, "atomic_claims": 2, "golden_claims": 2, "final_caption": 1},
            "There is a dog.",
        ),
    ],
)
def test_published_methods(
    compose: Compose, answer: Callable[..., Any], pipeline: str, requests: dict[str, int], final: str
):
    def script(request: Any) -> Any:
        text = request.prompt.text
        if isinstance(request, Score):
            return -3.0 if request.text == "Cat" else -0.5
        if text == "Describe the picture.":
            drafts.append(text)
            return "There is a dog. It is brown." if len(drafts) == 2 else answer(request)
        if text.startswith("Take apart: "):
            return "\n".join(split_sentences(text.removeprefix("Take apart: ")))
        if text.startswith("Name the things in: "):
            return "Dog\nCat" if "cat" in text else "Dog"
        if text.startswith("Leave out what is wrong:"):
            return "There is a dog."
        return answer(request)

    drafts: list[str] = []
    settings = compose("data.limit=1", *f"pipeline={pipeline}".split())
    summary = run(settings, engines=roles(script))
    (row,) = captions()
    assert (row["final_caption"], row["error"], row["flags"]) == (final, None, {})
    # Equal requests, as about sentences that two drafts have, are computed once.
    sent = {name: count.requests - count.reused for name, count in summary.usage.steps.items()}
    assert sent == requests


def test_a_second_look_at_the_place(compose: Compose):
    whole = None

    def script(request: Any) -> Any:
        nonlocal whole
        text, image = request.prompt.text, request.prompt.image
        if text == "Describe the picture.":
            whole = image
            return "A dog. A cat. A cow. A hen."
        if isinstance(request, Choose):
            looked = image.hash != whole.hash
            return next(p for name, p in SURE.items() if name in text)[looked]
        box = {"dog": [0, 0, 500, 500], "cat": [900, 900, 1100, 1100]}
        name = next((name for name in box if name in text), None)
        return json.dumps({"box": box[name]}) if name else "I can't tell."

    settings = compose("data.limit=1", "pipeline=look_again")
    summary = run(settings, engines=roles(script))
    (row,) = captions()
    assert [each is not None for each in row["boxes"]] == [True, True, False, False]
    assert [each is not None for each in row["views"]] == [True, False, False, False]
    assert row["golden_sentences"] == ["A dog.", "A cow.", "A hen."]
    assert row["flags"] == {"boxes": ["unparsed"], "views": ["outside"]}
    assert summary.flags["views"] == {"outside": 1}
    sent = {name: count.requests for name, count in summary.usage.steps.items() if name != "final_caption"}
    assert sent == {"init_caption": 1, "first_look": 4, "boxes": 4, "views": 0, "golden_sentences": 1}


SURE = {"dog": (0.4, 0.9), "cat": (0.4, 0.9), "cow": (0.6, 0.1), "hen": (0.95, 0.1)}
"""P(yes) at the first look, and at the place."""


def test_dense_adds_what_the_first_caption_missed(compose: Compose):
    """A model that sees more at each look, gets one colour wrong and invents a cat."""
    drafts = itertools.cycle(["A dog. A cat.", "I can see a dog. The ball is red."])
    whole: list[Any] = []

    def script(request: Any) -> Any:
        text, image = request.prompt.text, request.prompt.image
        if isinstance(request, Choose):
            return 0.1 if any(word in text for word in ("cat", "red", "cow")) else 0.9
        if text == "Describe the picture.":
            whole.append(image)
            return next(drafts) if image.hash == whole[0].hash else "A tree."
        if text.startswith("Say it otherwise:"):
            return "The ball is blue." if "ball" in text else "A cow."
        if text.startswith("What else is there?"):
            return "A kite." if "kite" not in text else "There is a kite."
        if text.startswith("List the things in:"):
            return f"Describe more details about the {text.split()[-1].rstrip('.')}."
        if text.startswith("Describe more details about"):
            return "It is small."
        assert text.startswith("Join into one description:")
        return text.partition("\n")[2].replace("\n", " ") + " A cat sleeps."

    settings = compose("data.limit=1", "pipeline=dense", "pipeline.steps.parts.rows=1")
    summary = run(settings, engines=roles(script))
    (row,) = captions()
    assert row["error"] is None
    assert row["sentences"] == ["A dog.", "A cat.", "The ball is red.", "A tree."]
    assert row["golden_sentences_refuted"] == ["A cat.", "The ball is red."]
    assert row["golden_repaired"] == ["The ball is blue."]
    assert row["golden_missed"] == ["A kite."]
    assert row["missed"] == ["A kite.", "There is a kite."]
    assert row["facts"] == ["A dog.", "A tree.", "The ball is blue.", "A kite."]
    assert row["final_caption"] == "A dog. A tree. The ball is blue. A kite. It is small."
    assert row["checked_sentences_refuted"] == ["A cat sleeps."]
    assert [each["of"] for each in row["parts"]] == [[336, 336]] * 2
    assert summary.flags == {"joint_questions": {"skipped": 1}}  # each fact brought its own question


def test_a_caption_without_golden_sentences_falls_back_and_is_flagged(
    compose: Compose, answer: Callable[..., object]
):
    def blind(request):
        return -1.0 if isinstance(request, Score) else answer(request)

    run(compose("pipeline=scalecap", "data.limit=1"), engines=roles(blind))
    (row,) = captions()
    assert row["golden_sentences"] == row["q_list"] == row["blocks"] == []
    assert row["final_caption"] == row["assembled_caption"] == row["init_caption"]
    assert row["flags"] == {"assembled_caption": ["fallback"], "final_caption": ["fallback"]}
