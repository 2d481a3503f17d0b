"""Train the tiny model from scratch: `python -m scalecap.scenes.train DIR`.

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
from torch import Tensor, nn

from scalecap.engines.children import mend
from scalecap.scenes import lessons, tower
from scalecap.scenes.architecture import (
    GRID,
    IMAGE_TOKENS,
    MERGE,
    make_model,
    make_tokenizer,
    normalise,
    save,
    see,
)
from scalecap.scenes.lessons import CAPTIONED, CHECKED, PLACED, Curriculum, Lesson, Render
from scalecap.scenes.world import Scene, render, sample

log = logging.getLogger(__name__)

FIRST_SEED = 1_000_000
"""Scenes are drawn from here upwards; smaller seeds are kept out of training for tests."""

LATE = Curriculum(presence=0.1, single=0.3)
"""What statements are about at the end of training. Until then they are simpler: presence first."""

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
    "collect_objects": ["compact"],
    "collect_positions": ["compact"],
}
"""Variants under `conf/prompts/<role>/`, the repeated ones asked more often."""


def taught_prompts() -> dict[str, list[Render]]:
    """The templates of a run, by role, as the lessons ask with them."""
    taught = {
        role: [lessons.shipped(role, variant) for variant in variants] for role, variants in _TAUGHT.items()
    }
    taught["verify"].append(lessons.shipped("verify_details", "seed"))
    return {role: [template.render for template in group] for role, group in taught.items()}


class Packer:
    """Turns lessons into tensors: shared prefix, then one segment a lesson."""

    def __init__(self, tokenizer: Any) -> None:
        self._ids: dict[str, list[int]] = {}
        self._tokenizer = tokenizer
        self._prefix = self._encode(_SYSTEM)
        start, pad, end = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
        self._image = tokenizer.convert_tokens_to_ids([start, *[pad] * IMAGE_TOKENS, end])
        self._pad = tokenizer.pad_token_id

    def _encode(self, text: str) -> list[int]:
        known = self._ids.get(text)
        if known is None:
            known = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
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
        drawn = lessons.about_scene(truth, prompts, rng, checks=4, share=LATE)
        drawn += [lessons.listing(truth, prompts, rng), lessons.collecting(truth, prompts, rng)]
        texts += [text for lesson in drawn for text in (lesson.prompt, lesson.reply)]
    return texts


def _tokenizer(folder: Path, seed: int, prompts: Mapping[str, Sequence[Render]]) -> Any:
    """A new one, or that of the training to go on with."""
    if (folder / "tokenizer.json").exists():
        mend()
        from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

        return Qwen2TokenizerFast.from_pretrained(folder)
    tokenizer = make_tokenizer(schoolbook(seed, 4000, prompts))
    tokenizer.save_pretrained(folder)
    return tokenizer


class Pupil:
    """The model, linear heads that only training needs, and the optimizer: what a checkpoint holds."""

    def __init__(self, tokenizer: Any, seed: int, steps: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = make_model(tokenizer, seed).to(self.device)
        hidden = self.model.config.text_config.hidden_size
        self.heads = tower.Heads(hidden).to(self.device)
        self.judge = nn.Linear(hidden, 2).to(self.device)
        language = [*self.model.model.language_model.parameters(), *self.judge.parameters()]
        visual = [*self.model.model.visual.parameters(), *self.heads.parameters()]
        self.weights = [*language, *visual]
        self.optimizer = torch.optim.AdamW(
            [{"params": language, "lr": 1.0}, {"params": visual, "lr": 0.15}],
            betas=(0.9, 0.98),
            weight_decay=0.05,
            fused=True,
        )
        # Peak 1.2e-3: warm up over 200 steps, then fall along a cosine to a fiftieth.
        self.rate = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: (
                1.2e-3 * min(1.0, (step + 1) / 200) * (0.51 + 0.49 * math.cos(math.pi * min(1, step / steps)))
            ),
        )
        self._parts: dict[str, Any] = {
            "visual": self.model.model.visual,
            "language": self.model.model.language_model,
            "heads": self.heads,
            "judge": self.judge,
            "optimizer": self.optimizer,
            "rate": self.rate,
        }

    def load(self, checkpoint: Path) -> int:
        """Take up a checkpoint; the number of steps done."""
        state = torch.load(checkpoint, weights_only=True, map_location=self.device)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, checkpoint: Path, step: int) -> None:
        """Write a checkpoint after `step` steps; a kill leaves the old one whole."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({**state, "step": step}, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    def learn(
        self,
        scenes: Sequence[Scene],
        about: Sequence[Sequence[Lesson]],
        alone: Sequence[Lesson],
        packer: Packer,
    ) -> dict[str, float]:
        """One step.

        Args:
            about: lessons about each scene.
            alone: lessons of text alone.

        Returns:
            Mean losses of captions, answers with places and text; the shares of checks, judgements
            and kinds that are right.
        """
        packed = self._packed(packer, [(each, True) for each in about])
        images = normalise([render(scene) for scene in scenes]).to(self.device)
        merged = see(self.model.model.visual, images)
        logits, targets, weights, middle = predict(self.model, packed, merged)
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        held = packed["holds"][packed["holds"] >= 0]
        judged = self.judge(middle[packed["holds"] >= 0]).float()
        labels = torch.stack([tower.label(scene) for scene in scenes]).to(self.device)
        seen, right = self.heads.loss(merged, labels)
        total = (loss * weights).sum() / weights.sum() + 0.2 * seen
        total = total + nn.functional.cross_entropy(judged, held)
        check = weights == CHECKED
        marks = {
            "caption": loss[weights == CAPTIONED].mean().item(),
            "check": (logits[check].argmax(-1) == targets[check]).float().mean().item(),
            "judge": (judged.argmax(-1) == held).float().mean().item(),
            "place": loss[weights == PLACED].mean().item(),
            "kind": right["kind"],
        }
        if alone:
            said = predict(self.model, self._packed(packer, [([lesson], False) for lesson in alone]), None)
            text_loss = nn.functional.cross_entropy(said.logits.float(), said.targets)
            marks["text"] = text_loss.item()
            total = total + 1.5 * text_loss
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.rate.step()
        return marks

    def _packed(self, packer: Packer, rows: Sequence[tuple[Sequence[Lesson], bool]]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in packer.pack(rows).items()}


def train(
    folder: Path,
    prompts: Mapping[str, Sequence[Render]],
    *,
    tower_steps: int = 1100,
    steps: int = 1900,
    stop: int | None = None,
    pictures: int = 12,
    checks: int = 8,
    texts: int = 16,
    seed: int = 0,
) -> None:
    """Train, or go on from the folder's checkpoint, and write the model to `folder/model`.

    Args:
        prompts: role to the templates that a run may ask with.
        stop: leave off after so many of the `steps`.
        pictures: pictures a step.
        checks: yes/no statements a picture, in pairs of a true and a false one.
        texts: lessons of text alone a step.
    """
    tokenizer = _tokenizer(folder / "model", seed, prompts)
    pupil, checkpoint = Pupil(tokenizer, seed, steps), folder / "checkpoint.pt"
    if checkpoint.exists():
        first = pupil.load(checkpoint)
    else:
        first = 0
        visual = pupil.model.model.visual
        tower.teach(visual, pupil.heads, steps=tower_steps, first_seed=FIRST_SEED + 50_000_000)
        pupil.save(checkpoint, first)
    packer = Packer(tokenizer)
    began = time.monotonic()
    seen: dict[str, float] = {}
    last = steps if stop is None else stop
    for step in range(first, last):
        rng = random.Random(f"{seed} {step}")
        scenes = [sample(FIRST_SEED + step * pictures + i) for i in range(pictures)]
        share = Curriculum(min(1.0, max(0.1, 2.8 - 6 * step / steps)), 0.85) if step < 0.8 * steps else LATE
        truths = [scene.truth() for scene in scenes]
        about = [lessons.about_scene(truth, prompts, rng, checks=checks, share=share) for truth in truths]
        work = rng.choices((lessons.joining, lessons.listing, lessons.collecting), (8, 2, 1), k=texts)
        alone = [draw(rng.choice(truths), prompts, rng) for draw in work]
        marks = pupil.learn(scenes, about, alone, packer)
        told = {name: mark for name, mark in marks.items() if not math.isnan(mark)}  # no lesson of its kind
        seen |= {name: 0.95 * seen.get(name, mark) + 0.05 * mark for name, mark in told.items()}
        if step % 25 == 0:
            means = ", ".join(f"{name} {mark:.3f}" for name, mark in seen.items())
            log.info("step %d of %d (%.0f s): %s", step, steps, time.monotonic() - began, means)
        if step % 100 == 99 or step == last - 1:
            pupil.save(checkpoint, step + 1)
            save(pupil.model, tokenizer, folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scalecap.scenes.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="for checkpoints and the finished model (folder/model)")
    parser.add_argument("--steps", type=int, default=1900, help="of the whole model, after the tower")
    parser.add_argument("--tower-steps", type=int, default=1100, help="of the vision tower alone")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train(arguments.folder, taught_prompts(), steps=arguments.steps, tower_steps=arguments.tower_steps)


if __name__ == "__main__":
    main()
