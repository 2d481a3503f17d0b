"""Fast, teacher-forced evaluation of the model on unseen scenes during training."""

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from scalecap.scenes.architecture import normalise, see
from scalecap.scenes.careless import careless_caption
from scalecap.scenes.claims import Claim, holds
from scalecap.scenes.grammar import read
from scalecap.scenes.statements import LATE, statements
from scalecap.scenes.train import lessons, tower
from scalecap.scenes.train.lessons import Lesson, Prompts
from scalecap.scenes.train.packing import Packer, predict
from scalecap.scenes.views import View, draw_view
from scalecap.scenes.world import unseen_seed
from scalecap.stats import area
from scalecap.text.content_words import content_words
from scalecap.text.segmentation import sentences

if TYPE_CHECKING:
    from scalecap.scenes.train.training import Learner

_SPANS = {
    "position": re.compile(r"(?:at the|on the|in the) (?:top|bottom|left|right|center)(?: left| right)?"),
    "facing": re.compile(r"facing (?:left|right)"),
    "neighbours": re.compile(r"next to [^.]*"),
    "size and colour": re.compile(r"(?<=is )(?:small|large) and \w+"),
}
_PAIRS = 8
"""Pairs of a true and a false statement per scene."""


@torch.no_grad()
def score(learner: "Learner", phase: str, prompts: Prompts, packer: Packer, count: int) -> dict[str, float]:
    """Scores on `count` unseen scenes.

    `check …` is the balanced accuracy of yes/no checks, by the field that the false statement has wrong, and
    `auc` that of their P(yes). `contrast auc` is that of a sentence's largest logit gap of a content word
    (with and without the image), for true against wrong sentences of careless captions: all, those that name
    an absent thing, and those with a wrong detail. `mean contrast auc` is that of the mean gap of
    log-probabilities. Other names are next-token accuracies of parts of answers. In the phase `language`,
    images are replaced by `tower.Described`.
    """
    views = [draw_view(unseen_seed(77, index)) for index in range(count)]
    labels = torch.stack([tower.token_labels(view) for view in views]).to(learner.device)
    if phase == "language":
        merged = learner.described(labels)
        found: dict[str, float] = {}
    else:
        images = normalise([view.image(336) for view in views]).to(learner.device)
        merged = torch.cat([see(learner.model.model.visual, part) for part in torch.split(images, 16)])
        found = {f"tower {name}": share for name, share in learner.heads.loss(merged, labels)[1].items()}
    if phase != "tower":
        found |= _checks(learner, views, prompts, packer, merged)
        found |= _contrast(learner, views, prompts, packer, merged)
        found |= _answers(learner, views, prompts, packer, merged)
    return {name: round(value, 4) for name, value in found.items()}


def _reply_logits(
    learner: "Learner", packer: Packer, rows: Sequence[Sequence[Lesson]], merged: Tensor | None
) -> list[Tensor]:
    """Logits of each lesson's reply, in the order of the rows; without images if `merged` is None."""
    out: list[Tensor] = []
    for first in range(0, len(rows), 12):
        part = rows[first : first + 12]
        if merged is None:
            packed = packer.pack([], [lesson for row in part for lesson in row])
            logits = predict(learner.model, packed).logits
        else:
            packed = packer.pack(part)
            logits = predict(learner.model, packed, merged[first : first + 12]).logits
        out += torch.split(logits, [packer.length(lesson) for row in part for lesson in row])
    return out


def _checks(
    learner: "Learner", views: Sequence[View], prompts: Prompts, packer: Packer, merged: Tensor
) -> dict[str, float]:
    rng = random.Random(1)
    pairs = [[statements(view.truth(), rng, LATE) for _ in range(_PAIRS)] for view in views]
    rows = [
        [
            Lesson(prompts["verify"][0](text=text), reply)
            for pair in group
            for text, reply in ((pair.true, "yes"), (pair.false, "no"))
        ]
        for group in pairs
    ]
    yes, no = (learner.tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
    log_odds = [
        float(logits[0, yes] - logits[0, no]) for logits in _reply_logits(learner, packer, rows, merged)
    ]
    true, false = np.array(log_odds[::2]), np.array(log_odds[1::2])
    by_sort: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(pair for group in pairs for pair in group):
        by_sort[pair.sort].append(number)
    found = {"check": float((np.mean(true > 0) + np.mean(false <= 0)) / 2), "auc": area(true, false)}
    for sort, numbers in sorted(by_sort.items()):
        found[f"check {sort}"] = float((np.mean(true[numbers] > 0) + np.mean(false[numbers] <= 0)) / 2)
    return found


def _contrast(
    learner: "Learner", views: Sequence[View], prompts: Prompts, packer: Packer, merged: Tensor
) -> dict[str, float]:
    rng = random.Random(2)
    rows = [[Lesson(prompts["caption"][0](), careless_caption(view.truth(), rng))] for view in views]
    seen = _reply_logits(learner, packer, rows, merged)
    without_image = _reply_logits(learner, packer, rows, None)
    rated: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for view, (lesson,), with_, without in zip(views, rows, seen, without_image, strict=True):
        encoded = learner.tokenizer(lesson.reply, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])[:, None].to(with_.device)
        with_, without = with_[: len(ids)].float(), without[: len(ids)].float()
        logits = (with_ - without).gather(1, ids)[:, 0]
        logprobs = (with_.log_softmax(-1) - without.log_softmax(-1)).gather(1, ids)[:, 0]
        words = content_words(lesson.reply)
        for start, end in sentences(lesson.reply):
            counted = [word for word in words if start <= word.start < end]
            tokens = [
                at
                for at, (a, b) in enumerate(encoded["offset_mapping"])
                if any(a < word.end and b > word.start for word in counted)
            ]
            if tokens:
                sort = _error(read(lesson.reply[start:end]), view.truth())
                rated[sort].append((float(logits[tokens].max()), float(logprobs[tokens].mean())))
    true, absent, detail = (np.array(rated[sort]).reshape(-1, 2) for sort in ("true", "absent", "detail"))
    wrong = {"": np.concatenate([absent, detail]), " absent": absent, " detail": detail}
    return {
        f"{name}{sort}": area(true[:, column], values[:, column])
        for column, name in enumerate(("contrast auc", "mean contrast auc"))
        for sort, values in wrong.items()
        if len(true) and len(values)
    }


def _error(claims: Sequence[Claim], truth: Mapping[str, Any]) -> str:
    """What is wrong in a sentence: an `absent` thing, or a `detail` of one that is there; or `true`."""
    if all(holds(claim, truth) for claim in claims):
        return "true"
    kinds = {thing["kind"] for thing in truth["things"]}
    return "absent" if any(claim.kind and claim.kind not in kinds for claim in claims) else "detail"


def _answers(
    learner: "Learner", views: Sequence[View], prompts: Prompts, packer: Packer, merged: Tensor
) -> dict[str, float]:
    rng = random.Random(3)
    verdicts = partial(lessons.verdicts, share=LATE)
    draws = (lessons.looks, lessons.place, lessons.missed, verdicts, lessons.choice)
    rows = [[draw(view.truth(), prompts, rng) for draw in draws] for view in views]
    names = ("looks", "place", "else", "batch", "choose")
    right: dict[str, list[bool]] = defaultdict(list)
    for number, logits in enumerate(_reply_logits(learner, packer, rows, merged)):
        lesson = rows[number // len(names)][number % len(names)]
        encoded = learner.tokenizer(lesson.reply, return_offsets_mapping=True)
        hit = logits[:-1].argmax(-1).cpu() == torch.tensor(encoded["input_ids"])
        right[f"{names[number % len(names)]} exact"].append(bool(hit.all()))
        for name, span in _SPANS.items() if lesson.weight != lessons.LISTED else ():
            if number % len(names) > 1:
                continue
            for match in span.finditer(lesson.reply):
                inside = [
                    place
                    for place, (a, b) in enumerate(encoded["offset_mapping"])
                    if a < match.end() and b > match.start()
                ]
                right[name].append(bool(hit[inside].all()))
    return {name: float(np.mean(hits)) for name, hits in sorted(right.items())}
