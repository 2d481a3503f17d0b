"""Lessons as they are packed for training, against the model as it is run."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

import torch

from scalecap.scenes.architecture import (
    IMAGE_TOKENS,
    make_model,
    make_tokenizer,
    normalise,
    patches,
    see,
)
from scalecap.scenes.kinds import COLOURS, KINDS
from scalecap.scenes.train import tower, training
from scalecap.scenes.train.course import Course, Sizes, training_prompts
from scalecap.scenes.train.lessons import Lesson
from scalecap.scenes.train.packing import Packer, predict
from scalecap.scenes.views import View, draw_view
from scalecap.scenes.world import render, sample

ROW = [
    Lesson("Describe the picture.", "There is a cat."),
    Lesson("Is it true? A dog. Answer yes or no.", "no", 4.0, (("A dog.", False),)),
    Lesson("Which?\n1. A cat.\n2. A dog.\n", "1", 1.0, (("A cat.", True), ("A dog.", False))),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([text for lesson in ROW for text in (lesson.prompt, lesson.reply)] * 20, size=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer).eval()


def chat(tokenizer, lesson: Lesson, image: bool) -> list[int]:
    """What an engine sends: the chat template's own text, the placeholder of the image in full."""
    content = [{"type": "image"}] * image + [{"type": "text", "text": lesson.prompt}]
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": content},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS) + lesson.reply + "<|im_end|>"
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def as_run(model, tokenizer, lesson: Lesson, image: torch.Tensor | None) -> tuple[torch.Tensor, list[int]]:
    """Logits at the reply of the model's own forward, and the reply's ids."""
    ids = chat(tokenizer, lesson, image is not None)
    reply = len(tokenizer(lesson.reply)["input_ids"]) + 1
    ids_ = torch.tensor([ids])
    seen = {}
    if image is not None:
        # Two equal frames make the temporal patch of a still image.
        pixels = patches(image)[0].reshape(-1, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).flatten(1)
        seen = {
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor([[1, 12, 12]]),
            "mm_token_type_ids": (ids_ == model.config.image_token_id).int(),
        }
    return model(input_ids=ids_, **seen).logits[0, -reply - 1 : -1], ids[-reply:]


@torch.no_grad()
def test_packed_lessons_are_what_the_model_sees_one_by_one(tokenizer, model):
    images = normalise([render(sample(3)), render(sample(4))])
    packer = Packer(tokenizer)
    packed = packer.pack([ROW, ROW[1:]], [ROW[0]])
    logits = predict(model, packed, see(model.model.visual, images)).logits
    first = 0
    order = [(lesson, images[:1]) for lesson in ROW] + [(lesson, images[1:]) for lesson in ROW[1:]]
    for lesson, image in [*order, (ROW[0], None)]:
        expected, ids = as_run(model, tokenizer, lesson, image)
        size = packer.length(lesson)
        assert torch.allclose(logits[first : first + size], expected, atol=1e-4)
        assert packed.targets[first : first + size].tolist() == ids
        first += size
    assert first == len(logits)


def test_only_statements_are_judged_each_up_to_the_next(tokenizer):
    packed = Packer(tokenizer).pack([ROW])

    def text(holds: int) -> str:
        return tokenizer.decode(packed.ids[packed.judged[packed.holds == holds]])

    assert text(1).strip() == "A cat.\n2."
    assert " ".join(text(0).split()) == "A dog. Answer yes or no. A dog."


@pytest.mark.parametrize("seed", range(20))
def test_labels_say_what_stands_under_each_token(seed: int):
    view = draw_view(seed, zoomed=0.5)
    labels = tower.token_labels(view).reshape(6, 6, -1)
    names = list(KINDS)
    shown = {names[kind - 1] for kind in labels[..., 0].unique().tolist() if kind}
    assert shown >= {thing["kind"] for thing in view.truth()["things"]}
    if view.whole:
        for thing in view.scene.things:
            row, column = divmod(thing.place, 3)
            corner = dict(zip(tower.HEAD_CLASSES, labels[2 * row, 2 * column].tolist(), strict=True))
            assert corner["kind"] == 1 + names.index(thing.kind)
            assert corner["colour"] == 1 + COLOURS.index(thing.colour)
            assert corner["facing"] == [None, "left", "right"].index(thing.facing)
            assert (corner["row"], corner["column"]) == (2 * row, 2 * column)
    else:
        assert (labels[..., 2] == -100).all()


def test_a_whole_view_is_the_scene():
    scene = sample(5)
    assert View(scene).truth() == scene.truth()
    assert View(scene).image(168).tobytes() == render(scene, 168).tobytes()


def test_described_images_share_the_embeddings_of_words():
    tokenizer = make_tokenizer([f"a {word} is" for word in (*KINDS, *COLOURS)] * 20, size=1000)
    embeddings = make_model(tokenizer).model.language_model.embed_tokens.weight
    described = tower.Described(tokenizer, embeddings, seed=0)
    for seed in range(20):
        (thing, *_) = sample(seed).things
        at = 12 * (thing.place // 3) + 2 * (thing.place % 3)
        token = described(tower.token_labels(View(sample(seed)))[None])[0, at]
        alike = [
            torch.cosine_similarity(token, embeddings[tokenizer(f" {kind}")["input_ids"]].mean(0), dim=0)
            for kind in (thing.kind, *(other for other in KINDS if other != thing.kind))
        ]
        assert max(alike) == alike[0]


def test_a_step_is_determined_by_its_number(tokenizer):
    course = Course("language", 9, Packer(tokenizer), training_prompts(), Sizes(2, 2, 2, 2), seed=0)
    assert torch.equal(course[4].packed.ids, course[4].packed.ids)
    assert course[4].packed.ids.tolist() != course[5].packed.ids.tolist()
    other = Course("language", 9, Packer(tokenizer), training_prompts(), Sizes(2, 2, 2, 2), seed=1)
    assert course[4].packed.ids.tolist() != other[4].packed.ids.tolist()


@pytest.mark.slow
def test_training_resumes_where_it_stopped(tmp_path: Path):
    """All steps at once give the weights of some steps, a stop and the others."""
    parts = {"language": 1.0, "judge": 1.0}, {"visual": 1.0, "heads": 1.0}
    plan = [
        training.Phase("language", 2, 1e-3, 0.5, parts[0]),
        training.Phase("tower", 2, 1e-3, 0.5, parts[1]),
        training.Phase("whole", 2, 1e-3, 0.5, parts[0] | parts[1]),
    ]
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        folder.mkdir()
        course = training.Training(folder, plan, Sizes(2, 1, 1, 2), scenes=2)
        if folder.name == "parts":
            shutil.copytree(tmp_path / "whole" / "model", folder / "model")  # for its tokenizer
            course = course._replace(scenes=0)  # scores change no weights
            for phase in plan:
                course.teach(phase.name, stop=1)
                course.teach(phase.name)
        else:
            course.run()
    whole, parted = [
        torch.load(tmp_path / name / "whole.pt", weights_only=True) for name in ("whole", "parts")
    ]
    for part in plan[2].lr_scales:
        assert all(torch.equal(whole[part][name], parted[part][name]) for name in whole[part])
    assert (tmp_path / "whole" / "model" / "model.safetensors").stat().st_size < 25 * 2**20
    scores = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"contrast auc", "mean contrast auc absent"} <= scores[-1].keys()
