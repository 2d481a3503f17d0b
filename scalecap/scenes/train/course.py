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
from scalecap.scenes.views import View, drawn
from scalecap.scenes.world import sample
from scalecap.text.templates import Template

FIRST_SEED = 1_000_000
"""Scenes are drawn from here upwards; smaller seeds are kept out of training for tests."""

ZOOMED = 0.12
"""The share of windows among pictures, and among what is told without one."""

WHOLE = lessons.MIX._replace(places=2.5, looks=0.5, missed=0.5)
"""With real pictures: more of places and neighbours, which are learnt last."""

_PHASES = {"language": 0, "tower": 1, "whole": 2}
_APART = 10**9
"""Seeds of a phase; each has its own. Those of `world.unseen` lie above all, up to a training seed of 99."""

_TAUGHT = {
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


def taught_prompts() -> dict[str, list[lessons.Render]]:
    """The templates of a run, by role, as the lessons ask with them."""
    taught = {
        role: [lessons.shipped(role, variant) for variant in variants] for role, variants in _TAUGHT.items()
    }
    taught["verify"].append(lessons.shipped("verify_details", "seed"))
    taught["structured"] = [Template("Describe the picture as JSON.")]  # as structured/compact.yaml renders
    return {role: [template.render for template in group] for role, group in taught.items()}


class Batch(NamedTuple):
    """One step."""

    labels: Tensor
    """(pictures, 36, readings)"""
    images: Tensor | None = None
    """(pictures, 3, 168, 168), normalised; None while pictures are described."""
    packed: Packed | None = None
    """Lessons about the pictures and without; None while the tower learns alone."""


class Sizes(NamedTuple):
    """How much a step holds."""

    pictures: int = 12
    texts: int = 7
    """Lessons of text alone: joining, listing, taking apart and so on."""
    priors: int = 6
    """Captions and answers without their picture."""
    tower: int = 64
    """Pictures of a step of the tower alone."""


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
        first = FIRST_SEED + _APART * (10 * self.seed + _PHASES[self.phase])
        if self.phase == "tower":
            seeds = range(first + step * self.sizes.tower, first + (step + 1) * self.sizes.tower)
            # Kinds are equally likely in half of the pictures, so that rare ones are seen as often.
            views = [drawn(seed, habits=seed % 2 == 0, zoomed=0.25) for seed in seeds]
            return Batch(_labels(views), normalise([view.picture(168) for view in views]))
        seeds = range(first + step * self.sizes.pictures, first + (step + 1) * self.sizes.pictures)
        views = [drawn(seed, zoomed=ZOOMED) for seed in seeds]
        rng = random.Random(f"{self.seed} {self.phase} {step}")
        mix = lessons.MIX if self.phase == "language" else WHOLE
        rows = [
            lessons.about_scene(view.truth(), self.prompts, rng, self._share(step), mix) for view in views
        ]
        packed = self.packer.pack(rows, self._alone(first + _APART // 2 + step * 100, rng))
        if self.phase == "language":
            return Batch(_labels(views), None, packed)
        return Batch(_labels(views), normalise([view.picture(336) for view in views]), packed)

    def _share(self, step: int) -> Curriculum:
        if self.phase != "language":
            return LATE._replace(beside=5.0)
        done = 2 * step / self.steps  # simple statements first, over the first half
        return Curriculum(max(LATE.presence, 1 - done), max(LATE.single, 0.95 - 0.35 * done))

    def _alone(self, seed: int, rng: random.Random) -> list[Lesson]:
        found = []
        for number in range(self.sizes.texts + self.sizes.priors):
            truth = drawn(seed + number, zoomed=ZOOMED).truth()
            draw = text_alone if number < self.sizes.texts else lessons.without_picture
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
    return torch.stack([tower.label(view) for view in views])


def schoolbook(seed: int, count: int, prompts: Prompts) -> list[str]:
    """Texts for the tokenizer: prompts and replies of `count` scenes, and every word of the world."""
    rng = random.Random(seed)
    texts = []
    for i in range(count):
        truth = sample(FIRST_SEED + i).truth()
        drawn_ = lessons.about_scene(truth, prompts, rng, LATE, Mix(structured=0.3))
        drawn_ += [text_alone(truth, prompts, rng) for _ in range(2)]
        texts += [text for lesson in drawn_ for text in (lesson.prompt, lesson.reply)]
    return texts
