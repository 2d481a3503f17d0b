"""The training data: each step's batch, sampled from the step's number alone."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scalecap.scenes.architecture import normalise
from scalecap.scenes.statements import LATE, Curriculum
from scalecap.scenes.train import lessons, tower
from scalecap.scenes.train.lessons import Lesson, Mix, Prompts
from scalecap.scenes.train.packing import Packed, Packer
from scalecap.scenes.train.texts import text_alone
from scalecap.scenes.views import View, draw_view
from scalecap.scenes.world import sample
from scalecap.text.templates import Template

FIRST_SEED = 1_000_000
"""First seed of training scenes; smaller ones are reserved for tests."""

WINDOW_SHARE = 0.12
"""Share of scenes that are shown through a window."""

WHOLE_MIX = lessons.MIX._replace(places=2.5, looks=0.5, missed=0.5)
"""Lessons of the last phase: more about places and neighbours, which are learnt last."""

_PHASES = {"language": 0, "tower": 1, "whole": 2}
_PHASE_SEEDS = 10**9
"""Seeds reserved for each phase. `world.unseen_seed` is above all of them for training seeds up to 99."""

_PROMPT_VARIANTS = {
    "caption": ["compact", "compact", "compact", "seed"],
    "verify": [*["compact"] * 12, "seed", "strict"],
    "questions": ["compact"],
    "fuse": ["compact"],
    "collect_objects": ["compact"],
    "collect_positions": ["compact"],
    "missed": ["compact"],
    "claims": ["compact"],
    "correct": ["compact"],
    "name_one": ["compact"],
    "objects": ["compact"],
    "region": ["compact"],
    "verify_batch": ["compact"],
    "choose": ["compact"],
    "alternatives": ["compact"],
}
"""Prompt variants under `conf/prompts/<role>/`; repetitions are weights."""


def training_prompts() -> dict[str, list[lessons.Render]]:
    """The prompt templates of the lessons, by role."""
    prompts = {
        role: [lessons.shipped(role, variant) for variant in variants]
        for role, variants in _PROMPT_VARIANTS.items()
    }
    prompts["verify"].append(lessons.shipped("verify_details", "seed"))
    prompts["structured"] = [Template("Describe the picture as JSON.")]  # as structured/compact.yaml renders
    return {role: [template.render for template in group] for role, group in prompts.items()}


class Batch(NamedTuple):
    """The data of one training step."""

    labels: Tensor
    """(images, 36, heads): the classes of `tower.token_labels`."""
    images: Tensor | None = None
    """(images, 3, 168, 168), normalised; None in the phase `language`."""
    packed: Packed | None = None
    """Lessons with and without images; None in the phase `tower`."""


class Sizes(NamedTuple):
    """Batch sizes of a step."""

    pictures: int = 12
    texts: int = 7
    """Text-only lessons."""
    priors: int = 6
    """Captions and answers without their images."""
    tower: int = 64
    """Images per step of the phase `tower`."""


class Course(Dataset[Batch]):
    """The batches of one phase, by step."""

    def __init__(
        self, phase: str, steps: int, packer: Packer, prompts: Prompts, sizes: Sizes, seed: int
    ) -> None:
        self.phase, self.steps, self.seed = phase, steps, seed
        self.packer, self.prompts, self.sizes = packer, prompts, sizes

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        first = FIRST_SEED + _PHASE_SEEDS * (10 * self.seed + _PHASES[self.phase])
        if self.phase == "tower":
            seeds = range(first + step * self.sizes.tower, first + (step + 1) * self.sizes.tower)
            # In half of the images kinds are uniform, so that rare ones are seen as often.
            views = [draw_view(seed, habits=seed % 2 == 0, zoomed=0.25) for seed in seeds]
            return Batch(_labels(views), normalise([view.image(168) for view in views]))
        seeds = range(first + step * self.sizes.pictures, first + (step + 1) * self.sizes.pictures)
        views = [draw_view(seed, zoomed=WINDOW_SHARE) for seed in seeds]
        rng = random.Random(f"{self.seed} {self.phase} {step}")
        mix = lessons.MIX if self.phase == "language" else WHOLE_MIX
        rows = [
            lessons.about_scene(view.truth(), self.prompts, rng, self._curriculum(step), mix)
            for view in views
        ]
        packed = self.packer.pack(rows, self._text_lessons(first + _PHASE_SEEDS // 2 + step * 100, rng))
        if self.phase == "language":
            return Batch(_labels(views), None, packed)
        return Batch(_labels(views), normalise([view.image(336) for view in views]), packed)

    def _curriculum(self, step: int) -> Curriculum:
        if self.phase != "language":
            return LATE._replace(beside=5.0)
        done = 2 * step / self.steps  # the curriculum starts with simple statements and ends half-way
        return Curriculum(max(LATE.presence, 1 - done), max(LATE.single, 0.95 - 0.35 * done))

    def _text_lessons(self, seed: int, rng: random.Random) -> list[Lesson]:
        found = []
        for number in range(self.sizes.texts + self.sizes.priors):
            truth = draw_view(seed + number, zoomed=WINDOW_SHARE).truth()
            draw = text_alone if number < self.sizes.texts else lessons.without_image
            found.append(draw(truth, self.prompts, rng))
        return found

    def batches(self, first: int) -> Iterator[Batch]:
        """The batches from step `first` on, sampled by a worker process."""
        yield from DataLoader(
            self,
            batch_size=None,
            sampler=range(first, self.steps),
            num_workers=1,
            prefetch_factor=4,
            multiprocessing_context="fork",  # templates can't be pickled
        )


def _labels(views: list[View]) -> Tensor:
    return torch.stack([tower.token_labels(view) for view in views])


def tokenizer_corpus(seed: int, count: int, prompts: Prompts) -> list[str]:
    """Texts to train the tokenizer on: prompts and replies about `count` scenes."""
    rng = random.Random(seed)
    texts = []
    for i in range(count):
        truth = sample(FIRST_SEED + i).truth()
        scene_lessons = lessons.about_scene(truth, prompts, rng, LATE, Mix(structured=0.3))
        scene_lessons += [text_alone(truth, prompts, rng) for _ in range(2)]
        texts += [text for lesson in scene_lessons for text in (lesson.prompt, lesson.reply)]
    return texts
