"""One run, start to end: the table of contents of the program."""

import asyncio
import atexit
import logging
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scalecap.calibration.record import CalibrationError
from scalecap.calibration.use import (
    AppliedPromise,
    apply_promises,
    check_models,
    check_scope,
    data_notes,
    describe_promises,
    fallback_notes,
)
from scalecap.config.settings import DataSettings, Settings
from scalecap.data import DataError, Source
from scalecap.data.files import redact_urls
from scalecap.data.images import image_name
from scalecap.data.sources import json_safe, rows_until_error
from scalecap.engines import EMBEDDED, Engines, preflight
from scalecap.engines.base import Engine, EngineDead, EngineError
from scalecap.engines.settings import EngineSettings, RoleSettings
from scalecap.interpreter.cache import Cache, CacheError
from scalecap.interpreter.dispatch import Dispatcher
from scalecap.interpreter.pipeline import Pipeline, PipelineError, stream
from scalecap.messages import plural
from scalecap.report.run_page import write_report
from scalecap.rows import OUTPUT_COLUMNS, Row
from scalecap.run.check import check, no_rows
from scalecap.run.cluster import open_cluster
from scalecap.run.costs import NO_ESTIMATE, estimate_cost, recorded_usage
from scalecap.run.edits import Edited, read_edits
from scalecap.run.folder import Run
from scalecap.run.journal import JOURNAL, Journal, JournalError
from scalecap.run.outputs import write
from scalecap.run.pending import PendingRows
from scalecap.run.stopping import handle_signals
from scalecap.run.summary import Summary
from scalecap.run.tracker import RowTracker
from scalecap.run.watchdog import EventLoopWatchdog
from scalecap.threads import DaemonPool

log = logging.getLogger(__name__)

MAX_ROWS_FOR_REPORT = 200
"""Largest run that gets a report by default: a report opens every image once more."""

NO_REUSE = (
    "Image tokens were hardly ever reused: of requests about an image sent before, less than 5 % of the"
    " prompt tokens came from the prefix cache, so nearly every request encoded its image again. Check that"
    " prefix caching is on (engine.args.enable_prefix_caching=true, or vllm serve --enable-prefix-caching)"
    " and that the cache is large enough (or lower rows_in_flight). Where prefix caching is not available, as"
    " with hybrid models such as Qwen3.5 and many hosted servers, check several texts in one request:"
    " pipeline.steps.STEP.batch=4 'pipeline.steps.STEP.batch_prompt=${prompts.verify_batch}'. Qwen3-VL"
    " (model=qwen3-vl-4b) on your own engine does not need this."
)

process_engines = Engines()
atexit.register(process_engines.close)


class RunError(Exception):
    """The run could not be done; the message says why and what to do."""


class Job(NamedTuple):
    """A run whose settings, data and pipeline have been checked."""

    settings: Settings
    """With the thresholds that a calibration sets."""
    source: Source
    pipeline: Pipeline
    promises: Mapping[str, AppliedPromise]
    """By check: the promise of the calibration."""


def run(
    settings: Settings,
    *,
    source: Source | None = None,
    engines: Mapping[str, Engine] | None = None,
    pool: Engines | None = None,
    command: str = "",
    on_start: Callable[[], None] = lambda: None,
) -> Summary:
    """Captions a data set and writes the run's folder.

    Args:
        settings: all settings; `settings.output` is the run's folder.
        source: the rows, in place of those that `settings.data` names.
        engines: by role, in place of those that the settings name (tests, dry runs).
        pool: opens and keeps the engines; None is the pool of this process.
        command: the command line, for the record.
        on_start: called once the folder belongs to this run.

    Raises:
        RunError: nothing could be done. Rows that fail are counted in the summary instead.
    """
    summary = Summary(Path(settings.output), command)
    pool = pool or process_engines
    with _expected_errors():
        with summary.phase("check"):
            job = prepare(settings, source)
            summary.notes += data_notes(job.promises, job.settings)
            journal = _open_journal(job)
        with journal, _open_cache(settings) as cache, _interrupts(journal, summary):
            with _disk_errors(summary.output):
                on_start()
            _log_resume(job, journal, cache, summary)
            rows = PendingRows(job.source, journal, settings.preview)
            if rows.may_remain():
                pool.run(_caption(job, rows, engines, pool, cache, summary))
            elif not rows.seen:
                raise no_rows(settings)
            else:  # no model was loaded; the rows are those of the recorded ones
                summary.models = Run(summary.output, "").summary.get("models", {})
                if rows.has_next():  # beyond the preview
                    rows.complete, summary.status = False, "preview"
                    summary.estimate = estimate_cost(recorded_usage(summary.output), job.source.total or 0)
            _add_notes(job, rows, summary)
            with _disk_errors(summary.output):
                _write_outputs(job, rows, summary)
            _write_report(job, summary)
    return summary


@contextmanager
def _expected_errors() -> Iterator[None]:
    """Raises what can go wrong as RunError; anything else is a bug, and keeps its traceback."""
    try:
        yield
    except (DataError, PipelineError, CalibrationError, JournalError, EngineError, CacheError) as error:
        raise RunError(str(error)) from error


def prepare(settings: Settings, source: Source | None = None) -> Job:
    """Checks all that can be checked before a model loads. DataError, PipelineError, CalibrationError."""
    settings, promises = apply_promises(settings)
    source, pipeline = check(settings, source)
    if settings.edits:
        source = Edited(source, read_edits(Path(settings.edits).expanduser(), pipeline.steps))
    check_scope(promises, pipeline, settings)
    return Job(settings, source, pipeline, promises)


def _open_journal(job: Job) -> Journal:
    return Journal(Path(job.settings.output), _config(job), force=job.settings.resume == "force")


def _config(job: Job) -> dict[str, Any]:
    """The config that the journal records: the settings, and digests of stages from outside the package."""
    code = {"code": job.pipeline.source_digests} if job.pipeline.source_digests else {}
    return asdict(job.settings) | code


def _check_folder(job: Job) -> None:
    """Raises JournalError where the folder holds another run, as `_open_journal` would; writes nothing."""
    path = Path(job.settings.output) / JOURNAL
    if os.path.exists(path) and path.stat().st_size:
        with Journal(path.parent, None) as journal:
            journal.check_config(json_safe(_config(job)), job.settings.resume == "force")


def _open_cache(settings: Settings) -> AbstractContextManager[Cache | None]:
    """The cache of replies, unless it is off. Raises CacheError before any model loads."""
    return closing(Cache(Path(settings.cache.dir).expanduser())) if settings.cache.enabled else nullcontext()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turns a failed write into a RunError; the rows themselves are safe in the journal."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"can't write in {folder}: {error.strerror or error}. All finished rows are kept in its journal;"
            " free some space and run the same command with the same output= to resume"
        ) from error


@contextmanager
def _interrupts(journal: Journal, summary: Summary) -> Iterator[None]:
    """Adds to a Ctrl-C that ends the run at once, before or after its rows, how to resume it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not len(journal.entries):
            raise
        raise KeyboardInterrupt(
            f"Interrupted. Finished rows are kept; resume:\n  {summary.resume}"
        ) from error


def _log_resume(job: Job, journal: Journal, cache: Cache | None, summary: Summary) -> None:
    """Says that the run resumes an earlier one, and where the two differ."""
    if not len(journal.entries):
        return
    done, total = journal.entries.done, job.source.total
    of = "" if total is None or total < done else f" of {total:,}"  # data.limit may be lower now
    cached = f", {cache.count():,} replies in the cache" if cache else ""
    log.info("resumed: %s%s rows done%s", f"{done:,}", of, cached)
    if journal.changes:
        summary.notes.append(f"Rows from before were made with another config ({journal.changes}).")
        log.warning(summary.notes[-1])


async def _caption(
    job: Job,
    rows: PendingRows,
    engines: Mapping[str, Engine] | None,
    pool: Engines,
    cache: Cache | None,
    summary: Summary,
) -> None:
    """Loads the models and takes the rows through the pipeline, each to the journal as it finishes."""
    settings = job.settings
    roles = settings.by_role(job.pipeline.roles)
    _add_model_notes(job, roles, summary)
    tracker = RowTracker(settings, job.pipeline, roles, rows, summary)
    async with AsyncExitStack() as stack:
        with summary.phase("load"):
            # A resumed run may pass over many rows: the first one to do is looked for while the models load.
            reader = stack.enter_context(DaemonPool(1, "rows"))
            search = asyncio.get_running_loop().run_in_executor(reader, rows.has_next)
            if settings.runner.name == "ray":
                cluster, summary.models = await stack.enter_async_context(
                    open_cluster(settings, rows.source.columns, summary.usage)
                )
                take_rows = partial(
                    stream, rows.take(), cluster.take, in_flight=cluster.rows, changed=cluster.changed
                )
            else:
                engines = engines or await pool.by_role(roles)
                stack.callback(_add_server_notes, engines, summary)
                summary.models = {role: engines[role].identity for role in roles}
                dispatcher = Dispatcher(
                    engines, cache, settings.sampling, settings.seed, summary.usage, settings.min_mass
                )
                take_rows = partial(
                    job.pipeline.run,
                    rows.take(),
                    dispatcher,
                    in_flight=lambda: settings.rows_in_flight or dispatcher.max_rows(),
                )
            check_models(job.promises, job.pipeline, settings, summary.models)
            await search
        tracker.start()
        watchdog = EventLoopWatchdog(job.pipeline.steps)
        signals = handle_signals(pool.loop, tracker.stop, tracker.on_signal)
        try:
            with summary.phase("rows"), tracker.progress, watchdog, signals:
                await take_rows(on_row=tracker.on_row, stop=tracker.stop)
        except (EngineDead, DataError) as error:
            tracker.abort(str(error))
    await tracker.finish()
    if summary.usage.prefix_cache_is_useless:
        summary.notes.append(NO_REUSE)


def _add_model_notes(job: Job, roles: Mapping[str, RoleSettings], summary: Summary) -> None:
    if warning := embedded_model_warning(roles, job.settings.data, job.source):
        summary.notes.append(warning)
        log.warning(warning)
    if "judge" in roles and roles["judge"] in [roles[role] for role in roles.keys() - {"judge"}]:
        summary.notes.append(
            "The judge and the captioner are the same model, which favours its own captions (self-preference"
            " bias): set another one with model.judge.name=…, the same in every run that is compared."
        )


def _add_server_notes(engines: Mapping[str, Engine], summary: Summary) -> None:
    """Notes of engines that send requests to several servers, such as outages."""
    for engine in dict.fromkeys(engines.values()):
        summary.notes += getattr(engine, "notes", list)()


def embedded_model_warning(
    roles: Mapping[str, RoleSettings], data: DataSettings, source: Iterable[Row]
) -> str:
    """A warning where the embedded model is to caption images that are not of its world; else empty.

    Images given in Python are of its world if the first one is a file of the packaged sample.
    """
    if data.source == "scenes" or EMBEDDED not in (each.model.name for each in roles.values()):
        return ""
    if data.source == "memory":
        from scalecap.scenes.world import SAMPLE

        first = next(iter(source), None)
        if first and Path(image_name(first.columns.get(data.image))).resolve().parent == SAMPLE.resolve():
            return ""
    return (
        "The embedded model knows its own world (data=scenes) and nothing else: its captions of other images"
        " are meaningless. Use a real model for them, e.g. model=qwen3-vl-4b."
    )


def _add_notes(job: Job, rows: PendingRows, summary: Summary) -> None:
    """Notes what differs from what the user may expect of the data and the files."""
    settings, source = job.settings, job.source
    hidden = [name for name in OUTPUT_COLUMNS if name in source.columns and name != settings.data.id]
    if hidden:
        summary.notes.append(
            f"The data's own {' and '.join(hidden)} are left out: the output has its own of that name."
        )
    summary.notes += rows.notes()
    if isinstance(source, Edited) and rows.complete and (unmatched := source.unmatched()):
        summary.notes.append(unmatched)
    if settings.write.needs_images and not rows.complete:
        summary.notes.append("Files with images, and files next to images, are written when a run finishes.")
    if settings.preview is not None and source.total is None:
        summary.notes.append(NO_ESTIMATE)
    if settings.labels.check and summary.status == "finished":
        command = f"  scalecap calibrate {shlex.quote(settings.output)} --wrong 0.05"
        summary.next = ["Next: make a promise of its labels:", command]


def _write_outputs(job: Job, rows: PendingRows, summary: Summary) -> None:
    """Writes the run's files and `summary.json` from the journal."""
    settings = job.settings
    summary.reused, summary.total = rows.reused, job.source.total
    with summary.phase("write"):
        write(
            job.pipeline,
            rows.journal,
            rows.output_indices(),
            summary,
            settings.write,
            image=settings.data.image,
            data=rows_until_error(job.source) if settings.write.needs_images and rows.complete else None,
        )
    edited = {step: flags["edited"] for step, flags in summary.flags.items()}
    # Rows of another config may have been made with other thresholds.
    kept = {} if rows.journal.changes else job.promises
    summary.promises = describe_promises(kept, job.pipeline, edited)
    summary.notes += fallback_notes(job.promises, job.pipeline, summary.flags)
    summary.write()


def _write_report(job: Job, summary: Summary) -> None:
    """Writes `report.html` if it is wanted. A failure to write it is logged, not raised."""
    rows, wanted = summary.done + summary.failed, job.settings.report
    if wanted is False or (wanted is None and rows > MAX_ROWS_FOR_REPORT) or not rows:
        return
    with summary.phase("report"):
        try:
            summary.report = write_report(summary.output, job.source)
        except Exception as error:
            log.warning("no report.html: %s: %s", type(error).__name__, error)


def plan(settings: Settings) -> str:
    """What a run would do, step by step. Raises RunError as the run would, before any model loads."""
    with _expected_errors():
        job = prepare(settings)
        _check_folder(job)
        roles = job.settings.by_role(job.pipeline.roles)
        unchecked = preflight(list(roles.values()))
    source, pipeline = job.source, job.pipeline
    rows = "a stream of rows" if source.total is None else plural(source.total, "row")
    lines = [f"{rows} with {', '.join(source.columns)}"]
    lines += [f"{role}: {model.name}{_engine(engine, settings)}" for role, (model, engine) in roles.items()]
    lines += [f"{step}: {promise}" for step, promise in job.promises.items()]
    lines += ["", pipeline.plan(), ""]
    if roles:
        usage = recorded_usage(Path(settings.output))
        estimate = estimate_cost(usage, source.total or 0)
        instead = NO_ESTIMATE if source.total is None else _HOW_TO_ESTIMATE
        lines.append(f"Estimate: {estimate}" if estimate else instead)
        unchecked.append("that prompts fit the context of the models")
    if any(step.image_parameters for step in pipeline.steps):
        unchecked.append("that images can be opened")
    if settings.runner.name == "ray":
        unchecked.append("the resources of the cluster's machines")
    lines.append("Configuration OK." + (f" Not checked: {'; '.join(unchecked)}." if unchecked else ""))
    return "\n".join(lines)


_HOW_TO_ESTIMATE = "For a cost estimate, run with preview=5: five rows, extrapolated to all."


def _engine(engine: EngineSettings, settings: Settings) -> str:
    """The engine of a role, where it is not that of the others."""
    if engine == settings.engine:
        return ""
    addresses = ", ".join(map(redact_urls, engine.addresses))
    return f", engine={engine.name}" + (f" at {addresses}" if addresses else "")
