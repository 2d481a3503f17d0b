"""What each step of the training sees, drawn from the step's number alone."""

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
"""Scenes are drawn from here upwards; smaller seeds are kept out of training for tests."""

WINDOW_SHARE = 0.12
"""The share of windows among images, and among what is told without one."""

WHOLE_MIX = lessons.MIX._replace(places=2.5, looks=0.5, missed=0.5)
"""With real images: more of places and neighbours, which are learnt last."""

_PHASES = {"language": 0, "tower": 1, "whole": 2}
_PHASE_SEEDS = 10**9
"""Seeds of a phase; each has its own. Those of `world.unseen` lie above all, up to a training seed of 99."""

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
"""Variants under `conf/prompts/<role>/`, the repeated ones asked more often."""


def training_prompts() -> dict[str, list[lessons.Render]]:
    """The templates of a run, by role, as the lessons ask with them."""
    prompts = {
        role: [lessons.shipped(role, variant) for variant in variants]
        for role, variants in _PROMPT_VARIANTS.items()
    }
    prompts["verify"].append(lessons.shipped("verify_details", "seed"))
    prompts["structured"] = [Template("Describe the picture as JSON.")]  # as structured/compact.yaml renders
    return {role: [template.render for template in group] for role, group in prompts.items()}


class Batch(NamedTuple):
    """One step."""

    labels: Tensor
    """(images, 36, readings)"""
    images: Tensor | None = None
    """(images, 3, 168, 168), normalised; None while images are described."""
    packed: Packed | None = None
    """Lessons about the images and without; None while the tower learns alone."""


class Sizes(NamedTuple):
    """How much a step holds."""

    pictures: int = 12
    texts: int = 7
    """Lessons of text alone: joining, listing, taking apart and so on."""
    priors: int = 6
    """Captions and answers without their image."""
    tower: int = 64
    """Images of a step of the tower alone."""


class Course(Dataset[Batch]):
    """The steps of one phase."""

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
            # Kinds are equally likely in half of the images, so that rare ones are seen as often.
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
        done = 2 * step / self.steps  # simple statements first, over the first half
        return Curriculum(max(LATE.presence, 1 - done), max(LATE.single, 0.95 - 0.35 * done))

    def _text_lessons(self, seed: int, rng: random.Random) -> list[Lesson]:
        found = []
        for number in range(self.sizes.texts + self.sizes.priors):
            truth = draw_view(seed + number, zoomed=WINDOW_SHARE).truth()
            draw = text_alone if number < self.sizes.texts else lessons.without_image
            found.append(draw(truth, self.prompts, rng))
        return found

    def batches(self, first: int) -> Iterator[Batch]:
        """The steps from `first` on, drawn by another process."""
        yield from DataLoader(
            self,
            batch_size=None,
            sampler=range(first, self.steps),
            num_workers=1,
            prefetch_factor=4,
            multiprocessing_context="fork",  # templates can't be sent to a process that is spawned
        )


def _labels(views: list[View]) -> Tensor:
    return torch.stack([tower.token_labels(view) for view in views])


def tokenizer_corpus(seed: int, count: int, prompts: Prompts) -> list[str]:
    """Texts for the tokenizer: prompts and replies of `count` scenes, and every word of the world."""
    rng = random.Random(seed)
    texts = []
    for i in range(count):
        truth = sample(FIRST_SEED + i).truth()
        scene_lessons = lessons.about_scene(truth, prompts, rng, LATE, Mix(structured=0.3))
        scene_lessons += [text_alone(truth, prompts, rng) for _ in range(2)]
        texts += [text for lesson in scene_lessons for text in (lesson.prompt, lesson.reply)]
    return texts
