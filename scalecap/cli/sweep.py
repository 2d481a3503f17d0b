"""One job of the command line, alone or in a sweep, and what a sweep ends with.

Launchers that run jobs in other processes (joblib, submitit) import `job` from here; what jobs found
out is read from their folders.
"""

import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from scalecap.config.errors import explain
from scalecap.config.settings import SettingsError, from_config
from scalecap.report.comparison import Comparison
from scalecap.run.folder import ERROR_FILE, FolderError, read_runs
from scalecap.run.journal import JOURNAL
from scalecap.runner import RunError, plan, run

log = logging.getLogger(__name__)

MODELS_FIRST = ("model", "engine")
"""Groups that say which engine is loaded."""

_command_line: list[str] = []
"""The words after `python -m scalecap`; none in a process that a launcher began."""
_exit_codes: list[int] = []
"""Exit codes of the jobs so far."""


class Interrupted(KeyboardInterrupt):
    """A job was told to stop, and its last screen is written."""


def start(words: Sequence[str]) -> None:
    """Before the first job: what was typed, for the record."""
    _command_line[:] = words
    _exit_codes.clear()


def exit_code() -> int:
    """The exit code of all jobs together: the worst."""
    return max(_exit_codes, default=0, key=[0, 3, 1, 130].index)


def job(config: DictConfig) -> float | None:
    """One run; in a sweep the mean of its `objective`.

    `.hydra` in its folder says what was asked, and a job that fails leaves `error.txt` there; one that was
    refused because the folder holds another run leaves that run's record as it is. The grid goes on with the
    next; another sweeper is told by the exception.
    """
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    folder, begun = Path(hydra.runtime.output_dir), False

    def record() -> None:
        nonlocal begun
        begun = True
        _record(folder, config)

    try:
        return _job(config, hydra, sweep, record)
    except Exception as error:
        known = isinstance(error, RunError | SettingsError | OmegaConfBaseException)
        if not (known or sweep):
            raise
        _exit_codes.append(1)
        reason = explain(error) if known else f"{type(error).__name__}: {error}"
        print(f"error: {reason}", file=sys.stderr)
        if not known:
            log.exception("the job failed")
        if not config.check and (begun or sweep or not (folder / JOURNAL).exists()):
            with suppress(OSError):  # the disk may be what is full
                record()
                (folder / ".hydra" / ERROR_FILE).write_text(reason + "\n", encoding="utf-8")
        if sweep and not _is_grid(hydra):
            raise
        return None


def _record(folder: Path, config: DictConfig) -> None:
    """What was asked, as Hydra would write it."""
    record = folder / ".hydra"
    record.mkdir(parents=True, exist_ok=True)
    (record / ERROR_FILE).unlink(missing_ok=True)
    whole: Any = HydraConfig.instance().cfg
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(whole, record / "hydra.yaml")
    OmegaConf.save(whole.hydra.overrides.task, record / "overrides.yaml")


def _job(config: DictConfig, hydra: Any, sweep: bool, record: Callable[[], None]) -> float | None:
    if sweep and any(each.startswith("output=") for each in hydra.overrides.task):
        raise SettingsError("output= names the folder of a single run; a sweep's is hydra.sweep.dir=DIR")
    settings = from_config(config)
    if sweep and not _is_grid(hydra) and not settings.objective:
        raise SettingsError("this sweeper needs objective=…: the metric that it makes as high as it can")
    if sweep and settings.report is None:
        settings.report = False  # the comparison shows all jobs side by side
    if settings.check:
        _print(plan(settings))
        _exit_codes.append(0)
        return None
    settings.output = hydra.runtime.output_dir
    words = _command_line or hydra.overrides.task  # a job that went to another process can be done alone, too
    summary = run(settings, command=shlex.join(["python", "-m", "scalecap", *words]), on_start=record)
    _print(summary.screen(alone=not sweep))
    if summary.status == "interrupted":
        raise Interrupted
    value = summary.value(settings.objective)
    if value is not None and math.isnan(value) and not (sweep and _is_grid(hydra)):
        known = ", ".join(summary.metrics) or "none"
        reason = f"no row has objective={settings.objective}; metrics that rows have: {known}"
        if sweep:
            raise RunError(reason)
        print(f"error: {reason}", file=sys.stderr)
        _exit_codes.append(1)
    _exit_codes.append(summary.exit_code)
    return value


def _print(text: str) -> None:
    """Prints what a job found; that nobody reads on, as after `| head`, is no failure of it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_grid(hydra: Any) -> bool:
    """Whether the sweeper only lists jobs, and so neither needs their values nor survives their errors."""
    return str(hydra.sweeper["_target_"]).endswith(".BasicSweeper")


def order_overrides(words: Sequence[str]) -> list[str]:
    """Options, then overrides, as Hydra wants them, however they were typed.

    In a sweep those about models come first: all jobs of one model are then done one after the other.
    """

    def later(word: str) -> bool:
        return word.lstrip("+").partition("=")[0].partition(".")[0] not in MODELS_FIRST

    options = [word for word in words if not _is_override(word)]
    overrides = [word for word in words if _is_override(word)]
    if {"-m", "--multirun"} & set(options):
        overrides.sort(key=later)
    return [*options, *overrides]


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


class WriteComparison(Callback):
    """Hydra's hook at a sweep's end: `comparison.md`, `.csv` and `.html` in its folder, and a table."""

    def __init__(self) -> None:
        self._begun = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._begun = time.time()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs([folder])
        # A launcher may have run the jobs elsewhere: how they ended is in their folders.
        _exit_codes.extend(each.exit_code for each in runs if each.started_at >= self._begun)
        if not runs:
            return
        try:
            made = Comparison(runs, objective=config.objective)
        except FolderError as error:  # an objective that none has: the jobs are compared all the same
            print(f"error: {error}", file=sys.stderr)
            _exit_codes.append(1)
            made = Comparison(runs)
        _print(made.save(folder))
