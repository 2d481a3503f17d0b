"""Lessons as they are packed for training, against the model as it is run."""

from pathlib import Path

import pytest

pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')

import torch

from scalecap.scenes import train as training
from scalecap.scenes.architecture import IMAGE_TOKENS, make_model, make_tokenizer, normalise, patches, see
from scalecap.scenes.lessons import Lesson
from scalecap.scenes.world import render, sample

ROW = [
    Lesson("Describe the picture.", "There is a cat."),
    Lesson("Is it true? A dog. Answer yes or no.", "no", 4.0),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer([text for lesson in ROW for text in (lesson.prompt, lesson.reply)] * 20, size=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer).eval()


def chat(tokenizer, lesson: Lesson, picture: bool) -> list[int]:
    """What an engine sends: the chat template's own text, the placeholder of the picture in full."""
    content = [{"type": "image"}] * picture + [{"type": "text", "text": lesson.prompt}]
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": content},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text = text.replace("<|image_pad|>", "<|image_pad|>" * IMAGE_TOKENS) + lesson.reply + "<|im_end|>"
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def test_a_packed_row_is_what_the_model_sees_lesson_by_lesson(tokenizer, model):
    picture = normalise([render(sample(3))])
    packed = training.Packer(tokenizer).pack([(ROW, True)])
    said = training.predict(model, packed, see(model.model.visual, picture))
    first = 0
    for lesson in ROW:
        ids = chat(tokenizer, lesson, picture=True)
        reply = len(tokenizer(lesson.reply)["input_ids"]) + 1
        ids_ = torch.tensor([ids])
        # Two equal frames make the temporal patch of a still picture.
        pixels = patches(picture)[0].reshape(-1, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).flatten(1)
        out = model(
            input_ids=ids_,
            pixel_values=pixels,
            image_grid_thw=torch.tensor([[1, 12, 12]]),
            mm_token_type_ids=(ids_ == model.config.image_token_id).int(),
        )
        expected = out.logits[0, -reply - 1 : -1]
        assert torch.allclose(said.logits[first : first + reply], expected, atol=1e-4)
        assert said.targets[first : first + reply].tolist() == ids[-reply:]
        first += reply
    assert first == len(said.logits)


@torch.no_grad()
def test_text_alone_is_packed_so_too(tokenizer, model):
    packed = training.Packer(tokenizer).pack([([ROW[0]], False), ([ROW[1]], False)])
    said = training.predict(model, packed, None)
    ids = chat(tokenizer, ROW[1], picture=False)
    expected = model(input_ids=torch.tensor([ids])).logits[0, -3:-1]
    assert torch.allclose(said.logits[-2:], expected, atol=1e-4)


def test_only_the_prompts_of_checks_are_judged(tokenizer):
    packed = training.Packer(tokenizer).pack([(ROW, True)])
    held = packed["holds"][0]
    text = tokenizer.decode(packed["ids"][0][held == 0])
    assert text.startswith("Is it true? A dog.")
    assert "no<" not in text
    assert not (held == 1).any()


@pytest.mark.slow
def test_training_goes_on_where_it_stopped(tmp_path: Path):
    """Two steps at once give the weights of one step, a stop and another."""
    prompts = training.taught_prompts()
    for folder, stops in ((tmp_path / "whole", [2]), (tmp_path / "parts", [1, 2])):
        folder.mkdir()
        for stop in stops:
            training.train(folder, prompts, tower_steps=1, steps=2, stop=stop, pictures=2, checks=2, texts=2)
    whole, parts = [
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["language"]
        for name in ("whole", "parts")
    ]
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert (tmp_path / "whole" / "model" / "model.safetensors").stat().st_size < 25 * 2**20
