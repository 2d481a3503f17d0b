"""One run, start to end: the table of contents of the program."""

import asyncio
import atexit
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from scalecap.calibration.record import CalibrationError
from scalecap.calibration.use import Applied, apply, check_models, check_scope, fallbacks, notes, told
from scalecap.config.settings import Settings
from scalecap.data import DataError, Source
from scalecap.data.files import redact_urls
from scalecap.data.replacing import is_foreign
from scalecap.data.sources import open_source, rows_until_error
from scalecap.engines import EMBEDDED, Engines, preflight
from scalecap.engines.base import Engine, EngineDead, EngineError
from scalecap.engines.settings import EngineSettings, RoleSettings
from scalecap.interpreter.cache import Cache, CacheError
from scalecap.interpreter.dispatch import Dispatcher, RowUsage
from scalecap.interpreter.pipeline import Finished, Pipeline, PipelineError, stream
from scalecap.report.run_page import write_report
from scalecap.rows import OUTPUT_COLUMNS
from scalecap.run import advice
from scalecap.run.cluster import open_cluster
from scalecap.run.costs import estimate_cost, recorded_usage
from scalecap.run.edits import Edited, read_edits
from scalecap.run.journal import Journal, JournalError
from scalecap.run.outputs import metric_steps, record, write
from scalecap.run.pending import PendingRows
from scalecap.run.progress import Progress
from scalecap.run.stopping import MIN_ROWS_FOR_SHARE, StopRules, handle_signals
from scalecap.run.summary import Summary
from scalecap.run.watchdog import EventLoopWatchdog
from scalecap.stats import label
from scalecap.text.suggestions import did_you_mean
from scalecap.threads import DaemonPool

log = logging.getLogger(__name__)

MAX_ROWS_FOR_ESTIMATE = 10_000
"""Rows that an estimate looks at, the first of a run."""
MAX_ROWS_FOR_REPORT = 200
"""Rows of which a report is made unasked: it opens every picture once more."""

process_engines = Engines()
atexit.register(process_engines.close)


class RunError(Exception):
    """The run could not be done; the message says why and what to do."""


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
        settings: all there is to set; `settings.output` is the run's folder.
        source: the rows, in place of those that `settings.data` names.
        engines: by role, in place of those that the settings name (tests, dry runs).
        pool: opens and keeps the engines; None is the process's own.
        command: what was typed, for the record.
        begun: called once the folder is this run's.

    Raises:
        RunError: nothing could be done. Rows that fail are counted in the summary instead.
    """
    summary = Summary(Path(settings.output), command)
    pool = pool or process_engines
    try:
        with summary.phase("check"):
            settings, promises = apply(settings)
            source, pipeline = check(settings, source)
            if settings.edits:
                source = Edited(source, read_edits(Path(settings.edits), pipeline.steps))
            check_scope(promises, pipeline, settings)
            summary.notes += notes(promises, settings)
            config = asdict(settings) | ({"code": pipeline.code} if pipeline.code else {})
            journal = Journal(summary.output, config, force=settings.resume == "force")
        with journal, _opened(settings) as cache:
            with _writing(summary.output):
                on_start()
            _tell_resumed(journal, source, cache)
            mixed = bool(journal.changes) and len(journal.entries) > 0
            if mixed:
                summary.notes.append(f"Rows from before were made with another config ({journal.changes}).")
                log.warning(summary.notes[-1])
            rows = PendingRows(source, journal)
            # One that was stopped has rows left: the model loads while they are found.
            if (len(journal.entries) and journal.complete is None) or rows.has_next():
                pool.run(_caption(settings, pipeline, promises, rows, engines, pool, cache, summary))
            elif not rows.seen:
                raise RunError(
                    f"data={settings.data.source} has no rows: {settings.data.path or ''}".rstrip(": ")
                )
            taken = [name for name in OUTPUT_COLUMNS if name in source.columns and name != settings.data.id]
            if taken:
                summary.notes.append(
                    f"The data's own {' and '.join(taken)} are left out: the output has its own of that name."
                )
            summary.notes += rows.notes()
            if isinstance(source, Edited) and rows.complete and (note := source.unmatched()):
                summary.notes.append(note)
            summary.reused, summary.total = rows.reused, source.total
            if settings.labels.check and summary.status == "finished":
                again = f"  scalecap calibrate {shlex.quote(settings.output)} --wrong 0.05"
                summary.next = ["Next: make a promise of its labels:", again]
            needs_pictures = settings.write.needs_pictures
            if needs_pictures and not rows.complete:
                summary.notes.append(
                    "Files with pictures, and those beside them, are written at a run's end."
                )
            with _writing(summary.output):
                with summary.phase("write"):
                    write(
                        pipeline,
                        journal,
                        rows.output_indices(),
                        summary,
                        settings.write,
                        image=settings.data.image,
                        data=rows_until_error(source) if needs_pictures and rows.complete else None,
                    )
                edited = {step: flags["edited"] for step, flags in summary.flags.items()}
                # Rows from before were made with other thresholds.
                summary.promises = told({} if mixed else promises, pipeline, edited)
                summary.notes += fallbacks(promises, pipeline, summary.flags)
                summary.write()
            _report(settings, summary, source)
    except (
        DataError,
        PipelineError,
        CalibrationError,
        JournalError,
        EngineError,
        CacheError,
    ) as error:
        raise RunError(str(error)) from error
    return summary


def _report(settings: Settings, summary: Summary, source: Source) -> None:
    """`report.html`, if it is wanted; that it can't be written costs the run nothing."""
    rows = summary.done + summary.failed
    if settings.report is False or (settings.report is None and rows > MAX_ROWS_FOR_REPORT) or not rows:
        return
    with summary.phase("report"):
        try:
            summary.report = write_report(summary.output, source)
        except Exception as error:
            log.warning("no report.html: %s: %s", type(error).__name__, error)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Files of the run's end: what they are made of is safe in the journal."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"can't write in {folder}: {error.strerror or error}. All finished rows are kept in its journal;"
            " make room, and the same command with the same output= goes on"
        ) from error


@contextmanager
def _opened(settings: Settings) -> Iterator[Cache | None]:
    """The cache of replies, unless it is off; CacheError before any model loads."""
    cache = Cache(Path(settings.cache.dir).expanduser()) if settings.cache.enabled else None
    try:
        yield cache
    finally:
        if cache:
            cache.close()


def _tell_resumed(journal: Journal, source: Source, cache: Cache | None) -> None:
    """The first line of a run that goes on with an earlier one."""
    if len(journal.entries):
        of = "" if source.total is None else f" of {source.total:,}"
        on_hand = f", {cache.count():,} replies on hand" if cache else ""
        log.info("resumed: %s%s rows done%s", f"{journal.entries.done:,}", of, on_hand)


def check(settings: Settings, source: Source | None = None) -> tuple[Source, Pipeline]:
    """The data and the pipeline, all checked that can be without a model. DataError, PipelineError."""
    source = source or open_source(settings.data)
    if source.total == 0:
        empty = f", so that shard {settings.data.shard} of it is empty" if settings.data.shard else ""
        raise DataError(f"data={settings.data.source} has no rows{empty}")
    pipeline = Pipeline.build(
        settings.pipeline.steps,
        source.columns,
        imports=settings.pipeline.imports,
        sampling=settings.sampling,
        budget=settings.pipeline.budget,
    )
    if not pipeline.steps:
        raise PipelineError(["it has no steps: choose one with pipeline=default, or give pipeline.steps"])
    if missing := pipeline.missing():
        raise PipelineError(missing)
    output = [*source.columns, *pipeline.writers, *OUTPUT_COLUMNS]
    if problems := settings.write.column_problems(output, [step.name for step in pipeline.steps]):
        raise PipelineError(problems)
    for folder in settings.write.folders:
        if is_foreign(Path(settings.output) / folder):
            raise DataError(
                f"{Path(settings.output) / folder} is there and was not written by scalecap: give another"
                " output=DIR"
            )
    wanted, metrics = label((settings.objective or "").lstrip("-")), metric_steps(pipeline)
    if wanted and not any(f"{wanted}.".startswith(f"{step}.") for step in metrics):
        wanted = wanted.partition(".")[0]
        close = did_you_mean(wanted, metrics) if metrics else "; none does: add one with evaluate=…"
        raise PipelineError([f"objective={settings.objective}: no step {wanted} writes numbers{close}"])
    return source, pipeline


def plan(settings: Settings) -> str:
    """What a run would do, step by step. Raises RunError as the run would, before any model loads."""
    try:
        settings, promises = apply(settings)
        source, pipeline = check(settings)
        if settings.edits:
            read_edits(Path(settings.edits), pipeline.steps)
        check_scope(promises, pipeline, settings)
    except (DataError, PipelineError, CalibrationError) as error:
        raise RunError(str(error)) from error
    roles = settings.by_role(pipeline.roles)
    try:
        unchecked = preflight(list(roles.values()))
    except EngineError as error:
        raise RunError(str(error)) from error
    lines = [
        f"{source.total if source.total is not None else 'a stream of'} rows with {', '.join(source.columns)}"
    ]
    lines += [f"{role}: {model.name}{_by(engine, settings)}" for role, (model, engine) in roles.items()]
    lines += [f"{step}: {promise}" for step, promise in promises.items()]
    if roles:
        unchecked.append("that prompts fit the context of the models")
    if any(step.pictures for step in pipeline.steps):
        unchecked.append("that pictures can be opened")
    if settings.runner.name == "ray":
        unchecked.append("what the machines of the cluster have")
    verdict = "Configuration OK." + (f" Not checked: {'; '.join(unchecked)}." if unchecked else "")
    expected = estimate_cost(recorded_usage(Path(settings.output)), source.total or 0)
    cost = (
        f"Estimate: {expected}" if expected else "preview=5 does five rows and estimates what all rows take."
    )
    return "\n".join([*lines, "", pipeline.plan(), "", *([cost] if roles else []), verdict])


def _by(engine: EngineSettings, settings: Settings) -> str:
    """What runs a role's model, where that is not what runs the others."""
    if engine == settings.engine:
        return ""
    return f", engine={engine.name}" + (
        f" at {', '.join(map(redact_urls, engine.addresses))}" if engine.addresses else ""
    )


async def _caption(
    settings: Settings,
    pipeline: Pipeline,
    promises: Mapping[str, Applied],
    rows: PendingRows,
    engines: Mapping[str, Engine] | None,
    pool: Engines,
    cache: Cache | None,
    summary: Summary,
) -> None:
    """Loads the models and takes the rows through the pipeline, each to the journal as it ends."""
    roles = settings.by_role(pipeline.roles)
    if note := embedded_model_warning(roles, settings.data.source):
        summary.notes.append(note)
        log.warning(note)
    if "judge" in roles and roles["judge"] in [roles[role] for role in roles.keys() - {"judge"}]:
        summary.notes.append(
            "The judge is the model that it judges, which is kind to itself: name another in"
            " model.judge.name=…, the same in every run that is compared."
        )
    progress = Progress(rows.source.total, summary.usage, live=settings.progress)
    rules = StopRules(settings, pipeline, roles, summary.usage)
    usages: list[RowUsage] = []
    wanted = rows.take(settings.preview)
    stop = asyncio.Event()

    def on_row(finished: Finished) -> None:
        rows.journal.append(record(finished, pipeline))
        progress.row(failed=finished.error is not None)
        if len(usages) < MAX_ROWS_FOR_ESTIMATE:
            usages.append(finished.usage)
        if len(usages) == MIN_ROWS_FOR_SHARE and summary.estimate is None and settings.preview is None:
            estimate()
            log.info("%s", summary.estimate or "no estimate: the data does not tell how many rows it has")
        if not stop.is_set() and (early := rules.stop(failed=progress.failed, done=progress.done)):
            stop.set()
            summary.status, summary.reason = "stopped", early.reason
            summary.next = early.next(summary.resume)

    def estimate() -> None:
        """What all rows take, from those that ended so far."""
        ended = progress.failed + progress.done
        if not ended or not rows.source.total:
            return
        cost = rules.whole_cost
        summary.estimate = estimate_cost(
            usages,
            rows.source.total,
            seconds=(time.monotonic() - started) / ended,
            price=None if cost is None else cost / ended,
        )

    def on_signal() -> None:
        summary.status = "interrupted"
        log.warning("finishing the rows in flight; once more stops at once")

    async with AsyncExitStack() as stack:
        with summary.phase("load"):
            reader = stack.enter_context(DaemonPool(1, "rows"))
            found = asyncio.get_running_loop().run_in_executor(reader, rows.has_next)
            if settings.runner.name == "ray":
                cluster, summary.models = await stack.enter_async_context(
                    open_cluster(settings, rows.source.columns, summary.usage)
                )
                take = partial(
                    stream,
                    wanted,
                    cluster.take,
                    in_flight=cluster.rows,
                    changed=cluster.changed,
                )
            else:
                engines = engines or await pool.by_role(roles)
                stack.callback(server_notes, engines, summary)
                summary.models = {role: engines[role].identity for role in roles}
                dispatcher = Dispatcher(
                    engines, cache, settings.sampling, settings.seed, summary.usage, settings.min_mass
                )
                take = partial(
                    pipeline.run,
                    wanted,
                    dispatcher,
                    in_flight=lambda: settings.rows_in_flight or dispatcher.rows(),
                )
            check_models(promises, pipeline, settings, summary.models)
            await found
        progress.reused, rows.on_reuse = rows.reused, progress.reuse
        started = time.monotonic()
        try:
            with (
                summary.phase("rows"),
                progress,
                EventLoopWatchdog(pipeline.steps),
                handle_signals(pool.loop, stop, on_signal),
            ):
                await take(on_row=on_row, stop=stop)
        except (EngineDead, DataError) as error:
            summary.reason = str(error)
            if summary.status == "finished":
                summary.status = "stopped"
    if (
        settings.preview is not None
        and summary.status == "finished"
        and await asyncio.to_thread(rows.has_next)
    ):
        summary.status = "preview"
    if settings.preview is not None:
        estimate()
    summary.cost = rules.cost
    rows.complete = summary.status == "finished"
    if summary.usage.reuses_nothing:
        summary.notes.append(advice.NO_REUSE)


def server_notes(engines: Mapping[str, Engine], summary: Summary) -> None:
    """What engines that ask several servers have to tell of them."""
    for engine in dict.fromkeys(engines.values()):
        summary.notes += getattr(engine, "notes", list)()


def embedded_model_warning(roles: Mapping[str, RoleSettings], source: str) -> str:
    """A warning where the embedded model is to caption pictures that are not of its world; else empty."""
    if source == "scenes" or EMBEDDED not in (each.model.name for each in roles.values()):
        return ""
    return (
        "The embedded model knows its own world (data=scenes) and nothing else: what it says about other"
        " pictures means nothing. Take a real one for them, e.g. model=qwen3-vl-4b."
    )
