"""Train the tiny model from nothing: `python -m scalecap.scenes.train DIR`.

Three phases. *language*: the language part learns all lessons on images told in words (`tower.Described`)
and captions and answers without any image, so that it has a prior. *tower*: the vision tower learns to
see what those words tell, and to make the same tokens; this is done beside the first, in another process.
*whole*: both together on real images.

The same command goes on where a training was stopped: each phase has its checkpoint, DIR/<phase>.pt.
DIR/log.jsonl has losses and scores, DIR/model what a run loads (`model.vlm.name=DIR/model`).
"""

import argparse
import ctypes
import json
import logging
import math
import os
import sys
import time
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scalecap.engines.compat import patch_libraries
from scalecap.scenes.architecture import make_model, make_tokenizer, save, see
from scalecap.scenes.train import tower
from scalecap.scenes.train.course import Batch, Course, Sizes, tokenizer_corpus, training_prompts
from scalecap.scenes.train.lessons import Prompts
from scalecap.scenes.train.packing import Packer, predict
from scalecap.scenes.train.scores import score

log = logging.getLogger(__name__)

LAYERS = 6
"""Of the text part; the first edition has five."""

JUDGE_LAYER = 4
"""After so many layers a linear head judges a statement at each of its tokens, for training only: one
token at the end is little to learn from, and yes and no stayed at chance longer."""

Z_LOSS_WEIGHT = 1e-3
"""Weight of the squared log-sum of logits. Near 0 it makes raw logits log-probabilities, so that a gap
between two of them means something (Chowdhery et al. 2022 use it for stability)."""


class Phase(NamedTuple):
    """A part of the training."""

    name: str
    steps: int
    learning_rate: float
    """The learning rate after warming up."""
    decay_share: float
    """The share of the steps, at the end, over which the rate falls to a fiftieth."""
    prompts: dict[str, float]
    """The parts that learn, and their share of the rate."""

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / 100) * max(0.02, min(1.0, left))


def phases(scale: float = 1.0) -> list[Phase]:
    """All of them; `scale` makes them shorter or longer."""
    return [
        Phase("language", round(2400 * scale), 1.2e-3, 0.1, {"language": 1.0, "judge": 1.0}),
        Phase("tower", round(5000 * scale), 1e-3, 0.4, {"visual": 1.0, "heads": 1.0}),
        Phase(
            *("whole", round(1700 * scale), 8e-4, 0.4),
            {"language": 1.0, "judge": 1.0, "visual": 0.25, "heads": 0.25},
        ),
    ]


class Learner:
    """The model and what only its training needs."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = tokenizer
        self.model = make_model(tokenizer, seed, layers=LAYERS)
        language, visual = self.model.model.language_model, self.model.model.visual
        hidden = self.model.config.text_config.hidden_size
        self.described = tower.Described(tokenizer, language.embed_tokens.weight, seed).to(self.device)
        self.heads = tower.Heads(hidden).to(self.device)
        self.judge = nn.Linear(hidden, 2).to(self.device)
        self.model.to(self.device)
        self.parts: dict[str, nn.Module] = {
            "visual": visual,
            "language": language,
            "heads": self.heads,
            "judge": self.judge,
        }

    def start(self, phase: Phase) -> None:
        """Begin a phase with a fresh optimizer for the parts that it teaches."""
        groups = [{"params": list(self.parts[name].parameters())} for name in phase.prompts]
        self.weights = [weight for group in groups for weight in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True)

    def step(self, phase: Phase, number: int, batch: Batch) -> dict[str, float]:
        """Learn one batch; losses, and shares of what was right."""
        for group, share in zip(self.optimizer.param_groups, phase.prompts.values(), strict=True):
            group["lr"] = phase.at(number) * share
        with torch.autocast(self.device, torch.bfloat16):
            loss, metrics = self.loss(phase.name, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}

    def loss(self, phase: str, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """What a batch teaches in a phase, as a loss."""
        if batch.images is None:
            return self._language_loss(batch, self.described(batch.labels))
        merged = see(self.model.model.visual, batch.images)
        seen, right = self.heads.loss(merged, batch.labels)
        if phase == "tower":
            wanted = self.described(batch.labels)
            distance = (merged.float() - wanted).square().mean() / wanted.square().mean()
            return seen + 2 * distance, {"seen": seen.item(), "apart": distance.item(), **right}
        read, metrics = self._language_loss(batch, merged)
        return read + 0.15 * seen, {**metrics, "kind": right["kind"], "facing": right["facing"]}

    def _language_loss(self, batch: Batch, merged: Tensor) -> tuple[Tensor, dict[str, float]]:
        packed = batch.packed
        assert packed is not None
        prediction = predict(self.model, packed, merged, JUDGE_LAYER)
        logits = prediction.logits.float()
        loss = nn.functional.cross_entropy(logits, packed.targets, reduction="none")
        z_loss = logits.logsumexp(-1).square().mean()
        judged = self.judge(prediction.judge_hidden).float()
        judge = nn.functional.cross_entropy(judged, packed.holds)
        weights = packed.weights
        total = (loss * weights).sum() / weights.sum() + Z_LOSS_WEIGHT * z_loss + 0.5 * judge
        metrics = {
            f"loss {weight:g}": loss[weights == weight].mean().item()
            for weight in sorted(set(weights.tolist()))
        }
        metrics["judge"] = (judged.argmax(-1) == packed.holds).float().mean().item()
        return total, metrics

    def load(self, checkpoint: Path, phase: Phase) -> int:
        """Take up a phase's checkpoint, to go on with it; the number of its steps that were done."""
        state = torch.load(checkpoint, weights_only=True, map_location=self.device)
        for name in phase.prompts:
            self.parts[name].load_state_dict(state[name])
        self.start(phase)
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self, checkpoint: Path, phase: Phase, step: int) -> None:
        """Write what a phase has taught; a kill leaves the old checkpoint whole."""
        state = {name: self.parts[name].state_dict() for name in phase.prompts}
        new = checkpoint.with_suffix(".new")
        torch.save({**state, "optimizer": self.optimizer.state_dict(), "step": step}, new)
        new.replace(checkpoint)


def _tokenizer(folder: Path, seed: int, prompts: Prompts) -> Any:
    """A new one, or that of the training to go on with."""
    if (folder / "tokenizer.json").exists():
        patch_libraries()
        from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

        return Qwen2TokenizerFast.from_pretrained(folder)
    tokenizer = make_tokenizer(tokenizer_corpus(seed, 3000, prompts))
    tokenizer.save_pretrained(folder)
    return tokenizer


class Training(NamedTuple):
    """How a model is trained."""

    folder: Path
    plan: list[Phase]
    sizes: Sizes = Sizes()
    seed: int = 0
    threads: int | None = None
    """Of each process; None shares out the cores there are."""
    seconds: float = 180
    """Between checkpoints."""
    every: int = 200
    """Steps between scores."""
    scenes: int = 60
    """Unseen scenes that scores are of; 0 for no scores."""

    def run(self) -> None:
        """Do all phases, or go on with them, and write the model to `folder/model`."""
        _tokenizer(self.folder / "model", self.seed, training_prompts())
        tower_process = get_context("spawn").Process(target=self.teach, args=("tower",))
        tower_process.start()
        try:
            self.teach("language")
        except BaseException:
            tower_process.terminate()
            raise
        finally:
            tower_process.join()
        if tower_process.exitcode:
            raise RuntimeError(f"the process that teaches the tower ended with {tower_process.exitcode}")
        self.teach("whole")

    def teach(self, name: str, stop: int | None = None) -> None:
        """Do one phase, or go on with it, up to its end or to step `stop`."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        cores = os.cpu_count() or 1
        torch.set_num_threads(self.threads or max(1, cores if name == "whole" else cores // 2))
        (phase,) = [phase for phase in self.plan if phase.name == name]
        prompts = training_prompts()
        learner, first = self._learner(phase)
        packer = Packer(learner.tokenizer)
        checkpoint, saved = self.folder / f"{name}.pt", time.monotonic()
        course = Course(name, phase.steps, packer, prompts, self.sizes, self.seed)
        means: dict[str, float] = {}
        for step, batch in enumerate(course.batches(first), first + 1):
            metrics = learner.step(phase, step - 1, batch)
            means |= {name: 0.95 * means.get(name, value) + 0.05 * value for name, value in metrics.items()}
            last = step in (phase.steps, stop)
            if step % 20 == 0:
                self._log(phase, step, means)
                _release_memory()
            if time.monotonic() - saved > self.seconds or last:
                learner.save(checkpoint, phase, step)
                saved = time.monotonic()
            if self.scenes and (step % self.every == 0 or last):
                self._log(phase, step, score(learner, name, prompts, packer, self.scenes))
            if name == "whole" and last:
                save(learner.model, learner.tokenizer, self.folder / "model")
            above = parent_process()
            if last or (above is not None and not above.is_alive()):
                return

    def judge(self, name: str, count: int) -> dict[str, float]:
        """Scores of a phase's last checkpoint on `count` unseen scenes; writes that checkpoint's model."""
        (phase,) = [phase for phase in self.plan if phase.name == name]
        learner, step = self._learner(phase)
        save(learner.model, learner.tokenizer, self.folder / "model")
        found = score(learner, name, training_prompts(), Packer(learner.tokenizer), count)
        self._log(phase, step, found)
        return found

    def _learner(self, phase: Phase) -> tuple[Learner, int]:
        """What a phase begins or goes on with, and how many of its steps are done."""
        learner = Learner(_tokenizer(self.folder / "model", self.seed, training_prompts()), self.seed)
        checkpoint = self.folder / f"{phase.name}.pt"
        if checkpoint.exists():
            return learner, learner.load(checkpoint, phase)
        if phase.name == "whole":
            for before in self.plan[:2]:
                learner.load(self.folder / f"{before.name}.pt", before)
        learner.start(phase)
        return learner, 0

    def _log(self, phase: Phase, step: int, metrics: dict[str, float]) -> None:
        line = {"phase": phase.name, "step": step, "time": time.strftime("%H:%M:%S")}
        line |= {"cpu": round(time.process_time(), 1)}
        line |= {name: round(value, 4) for name, value in metrics.items()}
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        log.info("%s %d of %d: %s", phase.name, step, phase.steps, shown)


def _release_memory() -> None:
    """Give free memory back to the system: steps differ in size, and glibc keeps gigabytes of holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scalecap.scenes.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="for checkpoints, the log and the model (folder/model)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of each phase")
    parser.add_argument("--seed", type=int, default=0, help="of weights and scenes")
    parser.add_argument(
        "--threads", type=int, default=None, help="of each process; all cores are shared out by default"
    )
    parser.add_argument(
        "--judge", metavar="PHASE", choices=[phase.name for phase in phases()], help="score it, train nothing"
    )
    parser.add_argument("--scenes", type=int, default=60, help="unseen scenes that scores are of")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    training = Training(
        arguments.folder,
        phases(arguments.scale),
        seed=arguments.seed,
        threads=arguments.threads,
        scenes=arguments.scenes,
    )
    if not arguments.judge:
        training.run()
        return
    for name, value in training.judge(arguments.judge, arguments.scenes).items():
        print(f"{name:<20} {value:.3f}")
