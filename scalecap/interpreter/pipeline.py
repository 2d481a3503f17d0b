"""The engine: a pipeline is built and checked, then rows run through it.

    Pipeline.build      YAML steps -> steps bound to stages, checked without a model (`binding.py`), sorted so
                        that each comes after the steps whose columns it reads, and grouped into loops
                        (`loops.py`)
    Pipeline.run        every row through the steps, many rows in flight at once (`stream`)
    Pipeline.run_row    one row: its image is opened, then every step runs as soon as the columns that it
                        reads exist, and the result is a `Finished`
    Step.run            one step of one row: the stage is called with the row's columns (`step.py`)

A stage sends requests through the client that it is given, which goes through the dispatcher: cache, requests
in flight, engine (`dispatch.py`). What a step may spend is an `Allowance` (`allowance.py`).

A row is a coroutine and its steps are tasks, so rows wait for engines, not for each other. Rows go depth
first: the requests about one image come close together, while its tokens are in the engine's prefix cache.
A stage that raises fails its step and the steps that read from it; the row's other steps still run.
"""

import asyncio
import hashlib
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from traceback import walk_tb
from typing import Any

from scalecap.engines.base import EngineDead, Image, Sampling
from scalecap.interpreter.allowance import Allowance
from scalecap.interpreter.binding import PipelineError, bind
from scalecap.interpreter.dispatch import Dispatcher, RowUsage, StepUsage
from scalecap.interpreter.loops import StepGroup, group_steps
from scalecap.interpreter.step import Step
from scalecap.rows import Failure, Row, RowError
from scalecap.threads import DaemonPool

__all__ = ["Finished", "Pipeline", "PipelineError", "Step"]


@dataclass(frozen=True)
class Finished:
    """A row after its last step, or after an error."""

    row: Row
    columns: dict[str, Any]
    """The input's columns, then those of the steps that succeeded, in the order of the steps."""
    error: Failure | None
    flags: dict[str, list[str]]
    """Step to its flags, sorted: truncated, looping, shortened, fallback …"""
    image_hash: str = ""
    """`Image.hash` of the row's image; empty if no step needs it or it could not be opened."""
    usage: RowUsage = RowUsage()
    over_limit: Mapping[str, int] = field(default_factory=dict)
    """By step, the number of items beyond its limit or the pipeline's budget."""


class Pipeline:
    """Sorted steps, each after those that it reads from.

    With a `budget`, steps that send requests run one after the other in this order, each with what the steps
    before it left: which items get a request never depends on which reply comes first. Metrics are exempt.
    """

    def __init__(self, steps: Sequence[Step], budget: int | None = None) -> None:
        self.groups = group_steps(steps)
        self.steps = [step for group in self.groups for step in group.steps]
        self.budget = budget
        self.roles = {step.role for step in self.steps if step.role is not None}
        self.writers = {column: step.name for step in self.steps for column in step.writes}
        """Columns written, in the order of the steps, each with the name of its step."""

    @classmethod
    def build(
        cls,
        steps: Mapping[str, Mapping[str, Any]],
        columns: Mapping[str, str] | None,
        *,
        imports: Sequence[str] = (),
        sampling: Sampling | None = None,
        budget: int | None = None,
    ) -> "Pipeline":
        """Bind and check the steps.

        Args:
            steps: name to `{stage: …, <column parameter>: <column>, <setting>: <value>}`, in any order.
            columns: name to kind of the columns of the data; None if they are unknown.
            imports: modules to import first, which register further stages.
            sampling: defaults of the run; a step's `sampling:` overrides single values.
            budget: maximum number of requests per row; see `scalecap.config.settings.PipelineSettings`.

        Raises:
            PipelineError: lists all problems at once.
        """
        return cls(bind(steps, columns, imports, sampling or Sampling()), budget)

    @property
    def source_digests(self) -> dict[str, str]:
        """Digest of the source file of each stage from another package; rows depend on it."""
        files = {step.stage.name: step.source for step in self.steps if step.source}
        return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for name, file in files.items()}

    def missing_requirements(self) -> list[str]:
        """Modules and weights that stages require and this machine does not have, each with the fix."""
        return [reason for step in self.steps for reason in step.missing_requirements()]

    def plan(self) -> str:
        """A readable description of what each step will do."""
        plans = [step.plan() for step in self.steps]
        if self.budget is not None:
            plans.insert(0, f"budget: {self.budget} requests an image at most, spent in this order")
        return "\n".join(plans)

    async def run(
        self,
        rows: Iterable[Row],
        dispatcher: Dispatcher,
        *,
        in_flight: Callable[[], int],
        on_row: Callable[[Finished], None],
        stop: asyncio.Event | None = None,
    ) -> None:
        """Run every row through the steps, then close the steps; see `stream`."""
        with image_pool() as images:
            try:
                await stream(
                    rows,
                    lambda row: self.run_row(row, dispatcher, images),
                    in_flight=in_flight,
                    on_row=on_row,
                    stop=stop,
                    changed=dispatcher.capacity_changed,
                )
            finally:
                await dispatcher.cancel_pending()
                for step in self.steps:
                    step.close()

    async def run_row(self, row: Row, dispatcher: Dispatcher, images: Executor) -> Finished:
        """Run one row through all steps; steps that read from a failed one are left out.

        Args:
            images: threads that open images.

        Raises:
            EngineDead: itself, not in a group, so that the caller of a Ray actor can catch it by its class.
        """
        if row.error:
            return Finished(row, dict(row.columns), _failure(None, row.error), {})
        if taken := [name for name in row.columns if name in self.writers]:
            given = {name: value for name, value in row.columns.items() if name not in taken}
            reason = f"the row has a column {taken[0]!r}, as the step {self.writers[taken[0]]!r} writes it"
            error = RowError("taken_column", f"{reason}; rename one of them")
            return Finished(row, given, _failure(None, error), {})
        image = None
        if any(step.image_parameters for step in self.steps):
            try:
                image = await asyncio.get_running_loop().run_in_executor(images, row.open_image)
            except Exception as error:
                return Finished(row, dict(row.columns), _failure("image", error), {})
        try:
            return await _RowRun(self, row, image, dispatcher).run()
        except BaseExceptionGroup as errors:
            raise _first_error(errors) from None


class _StepFailed(Exception):
    """Raised in place of a stage's error, which is kept for the row's record."""


class _RowRun:
    """One row on its way through the steps: the columns so far, errors, flags and usage."""

    def __init__(self, pipeline: Pipeline, row: Row, image: Image | None, dispatcher: Dispatcher) -> None:
        self.pipeline, self.row, self.image, self.dispatcher = pipeline, row, image, dispatcher
        self.values: dict[str, Any] = {**row.columns, "row_id": row.id}
        self.errors: dict[str, Exception] = {}
        self.flags: dict[str, set[str]] = {step.name: set() for step in pipeline.steps}
        self.over_limit: dict[str, int] = {}
        self.spent, self.metrics_usage = StepUsage(), StepUsage()
        self.tasks: dict[str, asyncio.Task[bool]] = {}
        """Step to the task of its group, which returns whether the columns were written."""

    async def run(self) -> Finished:
        """Start a task for each group; raises ExceptionGroup if an engine died."""
        async with asyncio.TaskGroup() as tasks:
            previous: StepGroup | None = None
            for group in self.pipeline.groups:
                in_turn = self.pipeline.budget is not None and group.spends_budget
                task = tasks.create_task(self._run_group(group, previous if in_turn else None))
                self.tasks |= dict.fromkeys((step.name for step in group.steps), task)
                previous = group if in_turn else previous
            # The task group raises what the tasks raise.
            show_image = (self.tasks[step.name] for step in self.pipeline.steps if step.shows_image)
            await asyncio.gather(*show_image, return_exceptions=True)
            with self.dispatcher.without_images():
                await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        return self._finished()

    async def _run_group(self, group: StepGroup, previous: StepGroup | None) -> bool:
        """Run the group once its columns exist and `previous` is done; whether its columns were written."""
        writers = self.pipeline.writers
        for column in group.reads:
            if column in writers and not await self.tasks[writers[column]]:
                return False
        if previous is not None:
            await self.tasks[previous.steps[0].name]
        # Columns edited by hand stay as they are: every round would find the same again.
        edited = bool(self.row.edits.keys() & group.writes)
        try:
            columns, finished = await group.run(
                self.values, self._run_step, 1 if edited else group.steps[-1].rounds
            )
        except _StepFailed:
            return False
        self.values.update(columns)
        if not (finished or edited):
            self.flags[group.steps[-1].name].add("unfinished")
        return True

    async def _run_step(self, step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
        """The step's columns, given the columns that it can read."""
        row, flags = self.row, self.flags[step.name]
        edits = {column: row.edits[column] for column in step.writes if column in row.edits}
        if edits:
            flags.add("edited")
        if len(edits) == len(step.writes):
            return edits
        budget = None if step.is_metric else self.pipeline.budget
        allowance = Allowance(math.inf if budget is None else budget - self.spent.requests)
        usage = self.metrics_usage if step.is_metric else self.spent
        client = self.dispatcher.client(step.name, flags.add, usage, allowance)
        try:
            written = await step.run(client, values, self.image, allowance)
        except EngineDead:
            raise
        except Exception as error:
            self.errors[step.name] = error
            raise _StepFailed from error
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            # Only what the stage awaited was cancelled; the row would end without the column and an error.
            self.errors[step.name] = RuntimeError(f"what {step.stage.name} waited for was cancelled")
            raise _StepFailed from error
        if allowance.over_limit:
            self.over_limit[step.name] = self.over_limit.get(step.name, 0) + allowance.over_limit
        return written | edits

    def _finished(self) -> Finished:
        steps = {step.name: step for step in self.pipeline.steps}
        for step in steps.values():
            self.values |= step.output(self.values)
        written = [column for column in self.pipeline.writers if column in self.values]
        # The first failed step in the order of the steps, not in time: a rerun gives the same error.
        failed = next((name for name in steps if name in self.errors), None)
        usage = self.spent + self.metrics_usage
        return Finished(
            self.row,
            {**self.row.columns, **{column: self.values[column] for column in written}},
            _failure(failed, self.errors[failed], steps[failed].source) if failed else None,
            {name: sorted(flags) for name, flags in self.flags.items() if flags},
            self.image.hash if self.image else "",
            RowUsage(*(getattr(usage, name) for name in RowUsage._fields)),
            {name: self.over_limit[name] for name in steps if name in self.over_limit},
        )


async def stream(
    rows: Iterable[Row],
    process: Callable[[Row], Awaitable[Finished]],
    *,
    in_flight: Callable[[], int],
    on_row: Callable[[Finished], None],
    stop: asyncio.Event | None = None,
    changed: asyncio.Event | None = None,
) -> None:
    """Run `process` on every row, at most `in_flight()` rows at once.

    After `stop` is set, or `rows` raised, rows in flight are finished and no further ones started. A row that
    is still being read at the end is not waited for.

    Args:
        rows: iterated in a thread.
        process: EngineDead ends the run; other failures of a row are part of what it returns.
        in_flight: called before each row.
        on_row: gets each row as it finishes, in no particular order; what it raises ends the run.
        changed: set when the value of `in_flight()` may have changed.
    """
    iterator, running = iter(rows), 0
    changed, stop = changed or asyncio.Event(), stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    read_error: Exception | None = None

    async def process_one(row: Row) -> None:
        nonlocal running
        try:
            on_row(await process(row))
        finally:
            running -= 1
            changed.set()

    # Reading may wait for a disk or a network, so it runs in a thread.
    with DaemonPool(1, "rows") as reader:
        stopped = asyncio.create_task(stop.wait())
        reading: asyncio.Future[Row | None] = loop.create_future()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    while running >= in_flight():
                        changed.clear()
                        await changed.wait()
                    if stop.is_set():
                        break
                    reading = loop.run_in_executor(reader, next, iterator, None)
                    await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
                    if stop.is_set():
                        break
                    try:
                        row = reading.result()
                    except Exception as error:
                        read_error = error
                        break
                    if row is None:
                        break
                    running += 1
                    group.create_task(process_one(row))
        except BaseExceptionGroup as group_error:
            raise _first_error(group_error) from None
        finally:
            reading.cancel()
            stopped.cancel()
    if read_error:
        raise read_error


def image_pool() -> DaemonPool:
    """Threads that open images."""
    return DaemonPool(min(8, os.cpu_count() or 1), "images")


def _failure(step: str | None, error: Exception, source: Path | None = None) -> Failure:
    """The row's error, with the line that raised it in `source`, the file of a stage from another package."""
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(source)]
    place = f" ({source.name}:{lines[-1]})" if source and lines else ""
    kind = getattr(error, "kind", type(error).__name__)
    return {"step": step, "kind": kind, "message": f"{error}{place}"}


def _first_error(error: BaseException) -> BaseException:
    """The first error in (nested) exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
