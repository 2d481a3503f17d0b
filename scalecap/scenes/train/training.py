"""Trains the embedded model from scratch: `python -m scalecap.scenes.train DIR`.

Three phases: in *language*, the language model learns all lessons with embedded labels in place of images
(`tower.Described`), and captions and answers without images, which are its prior. In *tower*, which runs in
parallel in another process, the vision tower learns to produce these embeddings from pixels. In *whole*, both
are trained together on images.

The same command resumes an interrupted training: each phase has a checkpoint, DIR/<phase>.pt. DIR/log.jsonl
has losses and scores, DIR/model the model for a run (`model.vlm.name=DIR/model`).
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
"""Layers of the language model."""

JUDGE_LAYER = 4
"""Layer after which an auxiliary linear head classifies statements as true or false at each of their tokens,
during training only. With the final yes/no token as the only signal, checks stayed at chance longer."""

Z_LOSS_WEIGHT = 1e-3
"""Weight of the z-loss (squared log-sum of logits, Chowdhery et al. 2022). It makes raw logits close to
log-probabilities, so that contrastive gaps between them are meaningful."""


class Phase(NamedTuple):
    """A phase of the training."""

    name: str
    steps: int
    learning_rate: float
    """Peak learning rate."""
    decay_share: float
    """Share of the steps, at the end, over which the learning rate decays to a fiftieth."""
    lr_scales: dict[str, float]
    """The parts that are trained, with factors of their learning rates."""

    def at(self, step: int) -> float:
        """The learning rate at a step."""
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / 100) * max(0.02, min(1.0, left))


def phases(scale: float = 1.0) -> list[Phase]:
    """All phases; `scale` multiplies their numbers of steps."""
    return [
        Phase("language", round(2400 * scale), 1.2e-3, 0.1, {"language": 1.0, "judge": 1.0}),
        Phase("tower", round(5000 * scale), 1e-3, 0.4, {"visual": 1.0, "heads": 1.0}),
        Phase(
            *("whole", round(1700 * scale), 8e-4, 0.4),
            {"language": 1.0, "judge": 1.0, "visual": 0.25, "heads": 0.25},
        ),
    ]


class Learner:
    """The model with its auxiliary heads and optimizer."""

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
        """Starts a phase with a new optimizer for the parts that it trains."""
        groups = [{"params": list(self.parts[name].parameters())} for name in phase.lr_scales]
        self.weights = [weight for group in groups for weight in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True)

    def step(self, phase: Phase, number: int, batch: Batch) -> dict[str, float]:
        """One optimization step; returns losses and accuracies."""
        for group, share in zip(self.optimizer.param_groups, phase.lr_scales.values(), strict=True):
            group["lr"] = phase.at(number) * share
        with torch.autocast(self.device, torch.bfloat16):
            loss, metrics = self.loss(phase.name, batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}

    def loss(self, phase: str, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, with metrics to log."""
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
        """Loads a phase's checkpoint; returns the number of steps that were done."""
        state = torch.load(checkpoint, weights_only=True, map_location=self.device)
        for name in phase.lr_scales:
            self.parts[name].load_state_dict(state[name])
        self.start(phase)
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self, checkpoint: Path, phase: Phase, step: int) -> None:
        """Writes a checkpoint atomically."""
        state = {name: self.parts[name].state_dict() for name in phase.lr_scales}
        new = checkpoint.with_suffix(".new")
        torch.save({**state, "optimizer": self.optimizer.state_dict(), "step": step}, new)
        new.replace(checkpoint)


def _tokenizer(folder: Path, seed: int, prompts: Prompts) -> Any:
    """The tokenizer of the training in `folder`, created if it does not exist."""
    if (folder / "tokenizer.json").exists():
        patch_libraries()
        from transformers import Qwen2TokenizerFast  # type: ignore[attr-defined]

        return Qwen2TokenizerFast.from_pretrained(folder)
    tokenizer = make_tokenizer(tokenizer_corpus(seed, 3000, prompts))
    tokenizer.save_pretrained(folder)
    return tokenizer


class Training(NamedTuple):
    """A training run."""

    folder: Path
    plan: list[Phase]
    sizes: Sizes = Sizes()
    seed: int = 0
    threads: int | None = None
    """Threads of each process; None divides the available cores."""
    seconds: float = 180
    """Time between checkpoints."""
    every: int = 200
    """Steps between evaluations."""
    scenes: int = 60
    """Unseen scenes to evaluate on; 0 disables evaluation."""

    def run(self) -> None:
        """Runs or resumes all phases and writes the model to `folder/model`."""
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
            raise RuntimeError(f"the process of phase tower failed with exit code {tower_process.exitcode}")
        self.teach("whole")

    def teach(self, name: str, stop: int | None = None) -> None:
        """Runs or resumes one phase, to its end or to step `stop`."""
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
        """Evaluates a phase's last checkpoint on `count` unseen scenes; writes its model."""
        (phase,) = [phase for phase in self.plan if phase.name == name]
        learner, step = self._learner(phase)
        save(learner.model, learner.tokenizer, self.folder / "model")
        found = score(learner, name, training_prompts(), Packer(learner.tokenizer), count)
        self._log(phase, step, found)
        return found

    def _learner(self, phase: Phase) -> tuple[Learner, int]:
        """The state to start or resume a phase with, and the number of steps done."""
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
    """Returns free memory to the system: batches differ in size, and glibc keeps gigabytes of holes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scalecap.scenes.train", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of checkpoints, log and model (folder/model)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and scenes")
    parser.add_argument(
        "--threads", type=int, default=None, help="threads per process (default: cores divided evenly)"
    )
    parser.add_argument(
        "--judge", metavar="PHASE", choices=[phase.name for phase in phases()], help="evaluate only"
    )
    parser.add_argument("--scenes", type=int, default=60, help="unseen scenes to evaluate on")
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
