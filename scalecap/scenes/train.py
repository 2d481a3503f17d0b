"""Train the tiny model from scratch: `python -m scalecap.scenes.train folder=DIR`.

First the vision tower with direct supervision, then everything at once on lessons that share
their picture: one row holds the picture once and after it many questions with their answers,
each of which sees the picture and itself only. Resumable; uses a GPU when there is one.
"""

import argparse
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import Qwen2TokenizerFast

from scalecap.prompts import Template
from scalecap.scenes import lessons, tower
from scalecap.scenes.lessons import Lesson, Render
from scalecap.scenes.model import (
    GRID,
    IMAGE_TOKENS,
    MERGE,
    make_model,
    make_tokenizer,
    normalise,
    save,
    see,
)
from scalecap.scenes.world import render, sample
from scalecap.settings import CONF

log = logging.getLogger(__name__)

FIRST_SEED = 1_000_000
"""Scenes are drawn from here upwards; smaller seeds are kept out of training for tests."""

JUDGED = 3
"""After so many layers a linear head judges a statement at each token of a check's prompt, for
training only: one token at the end is little to learn from, and yes and no stayed at chance longer."""

_HOLDS = {"yes": 1, "no": 0}

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"


_TAUGHT = {
    "caption": ["compact", "seed"],
    "verify": [*["compact"] * 12, "seed", "strict"],
    "questions": ["compact"],
    "fuse": ["compact"],
}
"""Variants under `conf/prompts/<role>/`, the repeated ones asked more often."""

_COLLECT = {
    "collect_objects": "Collect what each thing looks like:\n{{ blocks }}",
    "collect_positions": "Collect where each thing is:\n{{ blocks }}",
}


def taught_prompts() -> dict[str, list[Render]]:
    """The templates of a run, by role, as the lessons ask with them."""
    texts = {role: [text] for role, text in _COLLECT.items()}
    for role, variants in _TAUGHT.items():
        files = [CONF / "prompts" / role / f"{variant}.yaml" for variant in variants]
        texts[role] = [OmegaConf.load(file)[role] for file in files]
    details = CONF / "prompts" / "verify_details" / "seed.yaml"
    texts["verify"].append(OmegaConf.load(details)["verify_details"])
    return {role: [Template(text).render for text in group] for role, group in texts.items()}


class Packer:
    """Turns lessons into tensors: shared prefix, then one segment a lesson."""

    def __init__(self, tokenizer: Any) -> None:
        self._ids = {}
        self._tokenizer = tokenizer
        self._prefix = self._encode(_SYSTEM)
        start, pad, end = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
        self._image = tokenizer.convert_tokens_to_ids([start, *[pad] * IMAGE_TOKENS, end])
        self._pad = tokenizer.pad_token_id

    def _encode(self, text: str) -> list[int]:
        known = self._ids.get(text)
        if known is None:
            known = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(text) < 120 and len(self._ids) < 200_000:
                self._ids[text] = known
        return known

    def pack(self, rows: Sequence[tuple[Sequence[Lesson], bool]]) -> dict[str, Tensor]:
        """Pack rows of lessons, each row with or without a picture.

        Returns:
            `ids` (rows, length), `positions` (3, rows, length), `mask` (rows, 1, length, length;
            True where attention is allowed), `weights` (rows, length; the loss weight of
            predicting this token, 0 for prompts), `holds` (rows, length; in the prompt of a yes/no
            check 1 or 0, whether the statement is true; -1 elsewhere).
        """
        packed = []
        for row, picture in rows:
            ids: list[int] = []
            segment: list[int] = []
            weight: list[float] = []
            hold: list[int] = []
            position: list[tuple[int, int, int]] = []
            if picture:
                ids = self._prefix + self._image
                segment, weight, hold = [0] * len(ids), [0.0] * len(ids), [-1] * len(ids)
                first = len(self._prefix) + 1
                position = [(i, i, i) for i in range(first)]
                cells = GRID // MERGE
                position += [(first, first + i // cells, first + i % cells) for i in range(IMAGE_TOKENS)]
                position.append((first + cells,) * 3)
            start = position[-1][0] + 1 if picture else 0
            for number, lesson in enumerate(row, 1):
                ask = [] if picture else list(self._prefix)
                ask += self._encode(lesson.prompt) + self._encode("<|im_end|>\n<|im_start|>assistant\n")
                reply = self._encode(lesson.reply) + self._encode("<|im_end|>")
                ids = ids + ask + reply
                segment += [number] * (len(ask) + len(reply))
                weight += [0.0] * len(ask) + [lesson.weight] * (len(reply) - 1) + [min(1.0, lesson.weight)]
                hold += [_HOLDS.get(lesson.reply, -1)] * len(ask) + [-1] * len(reply)
                position += [(start + i,) * 3 for i in range(len(ask) + len(reply))]
            packed.append((ids, segment, weight, hold, position))
        length = max(len(ids) for ids, *_ in packed)
        batch = len(packed)
        ids_ = torch.full((batch, length), self._pad)
        segments = torch.full((batch, length), -1)
        weights = torch.zeros(batch, length)
        holds = torch.full((batch, length), -1)
        positions = torch.zeros(3, batch, length, dtype=torch.long)
        for i, (ids, segment, weight, hold, position) in enumerate(packed):
            size = len(ids)
            ids_[i, :size] = torch.tensor(ids)
            segments[i, :size] = torch.tensor(segment)
            weights[i, :size] = torch.tensor(weight)
            holds[i, :size] = torch.tensor(hold)
            positions[:, i, :size] = torch.tensor(position).T
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = (same & causal)[:, None]
        return {"ids": ids_, "positions": positions, "mask": mask, "weights": weights, "holds": holds}


class Prediction(NamedTuple):
    """What the model says at the tokens to learn."""

    logits: Tensor
    """(tokens, vocabulary)"""
    targets: Tensor
    """(tokens,)"""
    weights: Tensor
    """(tokens,)"""
    middle: Tensor
    """(rows, length, hidden): output of layer `JUDGED`."""


def predict(model: Any, packed: Mapping[str, Tensor], merged: Tensor | None) -> Prediction:
    """Logits at the tokens to learn.

    Args:
        merged: (pictures, 36, hidden) for the rows' pictures in order, or None.
    """
    language = model.model.language_model
    embeds = language.embed_tokens(packed["ids"])
    if merged is not None:
        here = packed["ids"] == model.config.image_token_id
        embeds = embeds.masked_scatter(here[..., None], merged.to(embeds.dtype))
    states = language(
        inputs_embeds=embeds,
        attention_mask=packed["mask"],
        position_ids=packed["positions"],
        use_cache=False,
        output_hidden_states=True,
    )
    learn = packed["weights"][:, 1:] > 0
    logits = model.lm_head(states.last_hidden_state[:, :-1][learn])
    targets, weights = packed["ids"][:, 1:][learn], packed["weights"][:, 1:][learn]
    return Prediction(logits, targets, weights, states.hidden_states[JUDGED])


def schoolbook(seed: int, count: int, prompts: Mapping[str, Sequence[Render]]) -> list[str]:
    """Texts for the tokenizer: prompts and replies of `count` scenes."""
    rng = random.Random(seed)
    texts = []
    for i in range(count):
        truth = sample(FIRST_SEED + i).truth()
        drawn = lessons.about_scene(truth, prompts, rng, checks=4, simple=0.2)
        drawn += [lessons.listing(truth, prompts, rng), lessons.collecting(truth, prompts, rng)]
        texts += [text for lesson in drawn for text in (lesson.prompt, lesson.reply)]
    return texts


def _tokenizer(folder: Path, seed: int, prompts: Mapping[str, Sequence[Render]]) -> Any:
    """A new one, or that of the training to go on with."""
    if (folder / "tokenizer.json").exists():
        return Qwen2TokenizerFast.from_pretrained(folder)
    tokenizer = make_tokenizer(schoolbook(seed, 4000, prompts))
    tokenizer.save_pretrained(folder)
    return tokenizer


def train(
    folder: Path,
    prompts: Mapping[str, Sequence[Render]],
    *,
    tower_steps: int = 1100,
    steps: int = 2600,
    pictures: int = 16,
    checks: int = 12,
    seed: int = 0,
    started: Path | None = None,
) -> None:
    """Train, saving a checkpoint now and then, and write the finished model to `folder`.

    Args:
        prompts: role to the templates that a run may ask with.
        pictures: pictures a step.
        checks: yes/no statements a picture, in pairs of a true and a false one.
        started: checkpoint of an earlier call with the same arguments, to go on from.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = _tokenizer(folder / "model", seed, prompts)
    model = make_model(tokenizer, seed).to(device)
    hidden = model.config.text_config.hidden_size
    heads, judge = tower.Heads(hidden).to(device), nn.Linear(hidden, 2).to(device)
    log.info(
        "%.1f million weights, %d words", sum(p.numel() for p in model.parameters()) / 1e6, len(tokenizer)
    )
    visual = [*model.model.visual.parameters(), *heads.parameters()]
    language = [*model.model.language_model.parameters(), *judge.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": language, "lr": 1.0}, {"params": visual, "lr": 0.15}],
        betas=(0.9, 0.98),
        weight_decay=0.05,
        fused=True,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            1.2e-3 * min(1.0, (step + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * min(1, step / steps)))
        ),
    )
    first = 0
    checkpoint = folder / "checkpoint.pt"
    if started is not None:
        state = torch.load(started, weights_only=True, map_location=device)
        model.model.visual.load_state_dict(state["visual"])
        heads.load_state_dict(state["heads"])
        if "language" in state:
            model.model.language_model.load_state_dict(state["language"])
            judge.load_state_dict(state["judge"])
            optimizer.load_state_dict(state["optimizer"])
            rate.load_state_dict(state["rate"])
            first = state["step"]
    else:
        tower.teach(model.model.visual, heads, steps=tower_steps, first_seed=FIRST_SEED + 50_000_000)
        torch.save({"visual": model.model.visual.state_dict(), "heads": heads.state_dict()}, checkpoint)
    packer = Packer(tokenizer)
    began = time.monotonic()
    seen: dict[str, float] = {}
    for step in range(first, steps):
        done = step / steps
        rng = random.Random(f"{seed} {step}")
        scenes = [sample(FIRST_SEED + step * pictures + i) for i in range(pictures)]
        # Whether a thing is there at all must be learnt before anything else is compared.
        simple = min(1.0, max(0.1, 2.2 - 4 * done))
        rows: list[tuple[Sequence[Lesson], bool]] = [
            (lessons.about_scene(scene.truth(), prompts, rng, checks=checks, simple=simple), True)
            for scene in scenes
        ]
        packed = {key: value.to(device) for key, value in packer.pack(rows).items()}
        merged = see(model.model.visual, normalise([render(scene) for scene in scenes]).to(device))
        logits, targets, weights, middle = predict(model, packed, merged)
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        total = (loss * weights).sum() / weights.sum()
        told, right = heads.loss(merged, torch.stack([tower.label(scene) for scene in scenes]).to(device))
        holds = packed["holds"]
        judged = judge(middle[holds >= 0]).float()
        total = total + nn.functional.cross_entropy(judged, holds[holds >= 0])
        check = weights == 4.0
        spot = {
            "caption": loss[weights == 0.5].mean().item(),
            "check": (logits[check].argmax(-1) == targets[check]).float().mean().item(),
            "judge": (judged.argmax(-1) == holds[holds >= 0]).float().mean().item(),
            "answer": loss[weights == 1.0].mean().item(),
            "kind": right["kind"],
        }
        total = total + 0.2 * told
        if step % 2 == 0:
            work = [lessons.joining, lessons.joining, lessons.listing, lessons.collecting]
            rows = [
                ([draw(scene.truth(), prompts, rng)], False)
                for scene, draw in zip(scenes[:8], work * 2, strict=True)
            ]
            words = {key: value.to(device) for key, value in packer.pack(rows).items()}
            said = predict(model, words, None)
            text_loss = nn.functional.cross_entropy(said.logits.float(), said.targets)
            spot["text"] = text_loss.item()
            total = total + 0.5 * text_loss
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_([*language, *visual], 1.0)
        optimizer.step()
        rate.step()
        seen = {**seen, **{name: 0.95 * seen.get(name, value) + 0.05 * value for name, value in spot.items()}}
        if step % 25 == 0:
            marks = ", ".join(f"{name} {value:.3f}" for name, value in seen.items())
            log.info("step %d of %d (%.0f s): %s", step, steps, time.monotonic() - began, marks)
        if step % 100 == 99 or step == steps - 1:
            state = {
                "visual": model.model.visual.state_dict(),
                "heads": heads.state_dict(),
                "language": model.model.language_model.state_dict(),
                "judge": judge.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rate": rate.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            save(model, tokenizer, folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scalecap.scenes.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="for checkpoints and the finished model (folder/model)")
    parser.add_argument("--steps", type=int, default=1900, help="of the whole model, after the tower")
    parser.add_argument("--tower-steps", type=int, default=1100, help="of the vision tower alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    started = arguments.folder / "checkpoint.pt"
    train(
        arguments.folder,
        taught_prompts(),
        steps=arguments.steps,
        tower_steps=arguments.tower_steps,
        started=started if started.exists() else None,
    )


if __name__ == "__main__":
    main()
