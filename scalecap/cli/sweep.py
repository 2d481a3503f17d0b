"""One job of the command line, alone or in a sweep, and the comparison at the end of a sweep.

Launchers that run jobs in other processes (joblib, submitit) import `job` from here; results of these jobs
are read from their folders.
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

from scalecap.config.compose import from_config
from scalecap.config.settings import SettingsError
from scalecap.report.comparison import Comparison
from scalecap.run.folder import ERROR_FILE, REFUSED_FILE, FolderError, read_runs
from scalecap.run.journal import JOURNAL
from scalecap.runner import RunError, plan, run

log = logging.getLogger(__name__)

MODELS_FIRST = ("model", "engine")
"""Groups that determine which engine is loaded."""

_command_line: list[str] = []
"""Arguments of `python -m scalecap`; empty in a process that a launcher started."""
_exit_codes: list[int] = []
"""Exit codes of the jobs so far."""


class Interrupted(KeyboardInterrupt):
    """A job was interrupted, and has printed its last screen."""


def start(arguments: Sequence[str]) -> None:
    """Resets the state before the first job, and keeps the command line for the record."""
    _command_line[:] = arguments
    _exit_codes.clear()


def exit_code() -> int:
    """The worst exit code of all jobs."""
    return max(_exit_codes, default=0, key=[0, 3, 1, 130].index)


def job(config: DictConfig) -> float | None:
    """Runs one job; in a sweep, returns the mean of its `objective`.

    `.hydra` in its folder records the config, and a job that fails writes `error.txt` there; a job that is
    rejected in the folder of another run leaves that run's record alone. A grid continues with the next job;
    other sweepers get the exception.
    """
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    folder, started = Path(hydra.runtime.output_dir), False

    def record() -> None:
        nonlocal started
        started = True
        _record(folder, config)

    try:
        return _job(config, hydra, sweep, record)
    except Exception as error:
        known = isinstance(error, RunError | SettingsError)
        if not (known or sweep):
            raise
        _exit_codes.append(1)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        print(f"error: {reason}", file=sys.stderr)
        if not known:
            log.exception("the job failed")
        refused = not started and (folder / JOURNAL).exists()
        if not config.check and config.output and (sweep or not refused):
            with suppress(OSError):  # the disk may be what is full
                if not refused:
                    record()
                name = REFUSED_FILE if refused else ERROR_FILE
                (folder / ".hydra" / name).write_text(reason + "\n", encoding="utf-8")
        if sweep and not _is_grid(hydra):
            raise
        return None


def _record(folder: Path, config: DictConfig) -> None:
    """Writes `.hydra` with the config and overrides, as Hydra does."""
    record = folder / ".hydra"
    record.mkdir(parents=True, exist_ok=True)
    for name in (ERROR_FILE, REFUSED_FILE):
        (record / name).unlink(missing_ok=True)
    whole: Any = HydraConfig.instance().cfg
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(whole, record / "hydra.yaml")
    OmegaConf.save(whole.hydra.overrides.task, record / "overrides.yaml")


def _job(config: DictConfig, hydra: Any, sweep: bool, record: Callable[[], None]) -> float | None:
    if sweep and any(each.startswith("output=") for each in hydra.overrides.task):
        raise SettingsError("output= is the folder of a single run; use hydra.sweep.dir=DIR in a sweep")
    settings = from_config(config)
    if sweep and not _is_grid(hydra) and not settings.objective:
        raise SettingsError("this sweeper requires objective=…, the metric to maximise")
    if sweep and settings.report is None:
        settings.report = False  # the comparison shows all jobs side by side
    if settings.check:
        _print(plan(settings))
        _exit_codes.append(0)
        return None
    settings.output = hydra.runtime.output_dir
    arguments = _command_line or hydra.overrides.task  # in another process, only the job's own are known
    command = shlex.join(["python", "-m", "scalecap", *arguments])
    summary = run(settings, command=command, on_start=record)
    _print(summary.screen(alone=not sweep))
    if summary.status == "interrupted":
        raise Interrupted
    value = summary.value(settings.objective)
    if value is not None and math.isnan(value) and not (sweep and _is_grid(hydra)):
        known = ", ".join(summary.metrics) or "none"
        reason = f"no row has objective={settings.objective}; available metrics: {known}"
        if sweep:
            raise RunError(reason)
        print(f"error: {reason}", file=sys.stderr)
        _exit_codes.append(1)
    _exit_codes.append(summary.exit_code)
    return value


def _print(text: str) -> None:
    """Prints to stdout, and ignores that it is closed (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_grid(hydra: Any) -> bool:
    """Whether the sweeper is Hydra's grid, which needs no values and would stop at an error."""
    return str(hydra.sweeper["_target_"]).endswith(".BasicSweeper")


def order_overrides(arguments: Sequence[str]) -> list[str]:
    """Options first, then overrides, as Hydra requires.

    In a sweep, overrides of models come first, so that all jobs of one model run one after the other.
    """

    def is_late(argument: str) -> bool:
        return argument.lstrip("+").partition("=")[0].partition(".")[0] not in MODELS_FIRST

    options = [each for each in arguments if not _is_override(each)]
    overrides = [each for each in arguments if _is_override(each)]
    if {"-m", "--multirun"} & set(options):
        overrides.sort(key=is_late)
    return [*options, *overrides]


def _is_override(argument: str) -> bool:
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


class WriteComparison(Callback):
    """Hydra callback at the end of a sweep: writes `comparison.md`, `.csv`, `.html`, and prints a table."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._started = time.time()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs([folder])
        marks = [mark for each in runs if (mark := each.folder / ".hydra" / REFUSED_FILE).exists()]
        # A launcher may have run the jobs in other processes, so exit codes are read from their folders.
        _exit_codes.extend(each.exit_code for each in runs if each.started_at >= self._started)
        _exit_codes.extend(1 for _ in marks)
        if not runs:
            return
        try:
            comparison = Comparison(runs, objective=config.objective)
        except FolderError as error:  # no job has the objective: compare the jobs all the same
            print(f"error: {error}", file=sys.stderr)
            _exit_codes.append(1)
            comparison = Comparison(runs)
        _print(comparison.save(folder))
        for mark in marks:
            mark.unlink(missing_ok=True)
