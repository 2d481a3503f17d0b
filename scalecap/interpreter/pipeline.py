"""The engine: a pipeline is built and checked, then rows go through it.

`Pipeline.build` binds each step to its stage and checks all that can be checked without a model
(`scalecap.interpreter.binding`). `Pipeline.run` takes rows through the steps, many at once: a row is a
coroutine, and each of its steps starts as soon as the columns that it reads exist.
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

from scalecap.engines.base import EngineDead, Sampling
from scalecap.interpreter.allowance import Allowance
from scalecap.interpreter.binding import PipelineError, bind
from scalecap.interpreter.dispatch import NOTHING_USED, Dispatcher, RowUsage, StepUsage
from scalecap.interpreter.rounds import Unit, units
from scalecap.interpreter.step import Step
from scalecap.rows import Row
from scalecap.threads import DaemonPool

__all__ = ["Finished", "Pipeline", "PipelineError", "Step"]


@dataclass(frozen=True)
class Finished:
    """A row that went through, or failed on the way."""

    row: Row
    columns: dict[str, Any]
    """The input's columns, then the steps' in their order; after an error, those that were done."""
    error: dict[str, Any] | None
    """{step, kind, message}: step is null when the row and "image" when the picture can't be read."""
    flags: dict[str, list[str]]
    """Step to its marks, sorted: truncated, looping, shortened, fallback …"""
    image_hash: str = ""
    """`Image.hash` of the row's picture; empty when no step looked at it, or it could not be opened."""
    usage: RowUsage = NOTHING_USED
    unasked: Mapping[str, int] = field(default_factory=dict)
    """Step to how many items its limit or the pipeline's budget left unasked."""


class _StepFailed(Exception):
    """The row's error has why."""


class Pipeline:
    """Steps in an order in which each comes after what it reads.

    With a `budget`, steps that ask a model come one after the other in this order, each with what those
    before it left: what is asked then never depends on which reply comes first. Metrics are not part of it.
    """

    def __init__(self, steps: Sequence[Step], budget: int | None = None) -> None:
        self.units = units(steps)
        self.steps = [step for unit in self.units for step in unit.steps]
        self.budget = budget
        self.roles = {step.role for step in self.steps if step.role is not None}
        self.writers = {column: step.name for step in self.steps for column in step.writes}
        """Columns written, in the steps' order, each with the name of its step."""

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
            columns: name to kind of what the data offers; None when that is not known.
            imports: modules to import first, which register stages of their own.
            sampling: the run's; a step's `sampling:` changes only the values that it names.
            budget: most requests a row; see `scalecap.config.settings.PipelineSettings`.

        Raises:
            PipelineError: with all problems at once.
        """
        return cls(bind(steps, columns, imports, sampling or Sampling()), budget)

    @property
    def code(self) -> dict[str, str]:
        """Digest of the file of each stage from outside; rows depend on it as on the config."""
        files = {step.stage.name: step.source for step in self.steps if step.source}
        return {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for name, file in files.items()}

    def missing(self) -> list[str]:
        """What the stages need and this machine does not have: modules, weights, each with the fix."""
        return [reason for step in self.steps for reason in step.missing()]

    def plan(self) -> str:
        """What will be done, step by step, for reading."""
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
        """Take every row through the steps, and close these; see `stream`."""
        with picture_pool() as pictures:
            try:
                await stream(
                    rows,
                    lambda row: self.take(row, dispatcher, pictures),
                    in_flight=in_flight,
                    on_row=on_row,
                    stop=stop,
                    changed=dispatcher.capacity_changed,
                )
            finally:
                await dispatcher.cancel_pending()
                for step in self.steps:
                    step.close()

    async def take(self, row: Row, dispatcher: Dispatcher, pictures: Executor) -> Finished:
        """Take one row through all steps that it can go through.

        Raises:
            EngineDead: itself, not in a group: an actor's caller is to know it by its class.
        """
        if row.error:
            return Finished(row, dict(row.columns), _record(None, row.error), {})
        image = None
        if any(step.pictures for step in self.steps):
            try:
                image = await asyncio.get_running_loop().run_in_executor(pictures, row.open_image)
            except Exception as error:
                return Finished(row, dict(row.columns), _record("image", error), {})
        values = {**row.columns, "row_id": row.id}
        errors: dict[str, Exception] = {}
        flags: dict[str, set[str]] = {step.name: set() for step in self.steps}
        tasks: dict[str, asyncio.Task[bool]] = {}
        spent, judged = StepUsage(), StepUsage()
        unasked: dict[str, int] = {}

        async def write(step: Step, seen: Mapping[str, Any]) -> dict[str, Any]:
            """The step's columns, from the columns that it sees."""
            edits = {column: row.edits[column] for column in step.writes if column in row.edits}
            if edits:
                flags[step.name].add("edited")
            if len(edits) == len(step.writes):
                return edits
            budget = math.inf if self.budget is None or step.measures else self.budget
            allowance = Allowance(budget - spent.requests)
            client = dispatcher.client(
                step.name, flags[step.name].add, judged if step.measures else spent, allowance
            )
            try:
                written = await step.take(client, seen, image, allowance)
            except EngineDead:
                raise
            except Exception as error:
                errors[step.name] = error
                raise _StepFailed from error
            if allowance.unasked:
                unasked[step.name] = unasked.get(step.name, 0) + allowance.unasked
            return written | edits

        async def take(unit: Unit, after: Unit | None) -> bool:
            """Whether the unit's columns were written."""
            for column in unit.reads:
                if column in self.writers and not await tasks[self.writers[column]]:
                    return False
            if after is not None:
                await tasks[after.steps[0].name]
            # What was edited by hand stands as it is, and would be found again in each round.
            edited = bool(row.edits.keys() & unit.writes)
            try:
                columns, finished = await unit.run(values, write, 1 if edited else unit.steps[-1].rounds)
            except _StepFailed:
                return False
            values.update(columns)
            if not (finished or edited):
                flags[unit.steps[-1].name].add("unfinished")
            return True

        try:
            async with asyncio.TaskGroup() as group:
                after: Unit | None = None
                for unit in self.units:
                    spends = self.budget is not None and unit.asks
                    task = group.create_task(take(unit, after if spends else None))
                    tasks |= dict.fromkeys((step.name for step in unit.steps), task)
                    after = unit if spends else after
                # What they raise is the group's to tell.
                showing = (tasks[step.name] for step in self.steps if step.shows_picture)
                await asyncio.gather(*showing, return_exceptions=True)
                with dispatcher.showing_no_picture():
                    await asyncio.gather(*tasks.values(), return_exceptions=True)
        except BaseExceptionGroup as errors_of_steps:
            raise _cause(errors_of_steps) from None
        for step in self.steps:
            values |= step.output(values)
        order = [*row.columns, *self.writers]
        # The first in the steps' order, not in time: the same row fails the same way again.
        steps = {step.name: step for step in self.steps}
        failed = next((name for name in steps if name in errors), None)
        return Finished(
            row,
            {column: values[column] for column in order if column in values},
            _record(failed, errors[failed], steps[failed].source) if failed else None,
            {name: sorted(marks) for name, marks in flags.items() if marks},
            image.hash if image else "",
            RowUsage(*(getattr(spent + judged, name) for name in RowUsage._fields)),
            {step.name: unasked[step.name] for step in self.steps if step.name in unasked},
        )


async def stream(
    rows: Iterable[Row],
    take: Callable[[Row], Awaitable[Finished]],
    *,
    in_flight: Callable[[], int],
    on_row: Callable[[Finished], None],
    stop: asyncio.Event | None = None,
    changed: asyncio.Event | None = None,
) -> None:
    """Every row through `take`, at most `in_flight()` at once, asked before each row.

    `on_row` gets each row as it ends, in no order. A row's failure stays its own; EngineDead, and
    what `rows` or `on_row` raise, end the run. After `stop` is set, and after `rows` raised, rows in
    flight are finished and no more are started. `changed` is set when `in_flight()` may be another.
    However it ends, a row that is still being read is not waited for.
    """
    iterator, open_rows = iter(rows), 0
    changed, stop = changed or asyncio.Event(), stop or asyncio.Event()
    loop = asyncio.get_running_loop()
    broken: Exception | None = None

    async def one(row: Row) -> None:
        nonlocal open_rows
        try:
            on_row(await take(row))
        finally:
            open_rows -= 1
            changed.set()

    # Reading may wait for a disk or a network, so it has a thread of its own.
    with DaemonPool(1, "rows") as reader:
        stopped = asyncio.create_task(stop.wait())
        reading: asyncio.Future[Row | None] = loop.create_future()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    while open_rows >= in_flight():
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
                        broken = error
                        break
                    if row is None:
                        break
                    open_rows += 1
                    group.create_task(one(row))
        except BaseExceptionGroup as group_error:
            raise _cause(group_error) from None
        finally:
            reading.cancel()
            stopped.cancel()
    if broken:
        raise broken


def picture_pool() -> DaemonPool:
    """Threads that open pictures."""
    return DaemonPool(min(8, os.cpu_count() or 1), "pictures")


def _record(step: str | None, error: Exception, source: Path | None = None) -> dict[str, Any]:
    """The row's error; one that a stage from outside raised tells the line in its file."""
    raised = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(source)]
    place = f" ({source.name}:{raised[-1]})" if source and raised else ""
    kind = getattr(error, "kind", type(error).__name__)
    return {"step": step, "kind": kind, "message": f"{error}{place}"}


def _cause(error: BaseException) -> BaseException:
    """The first error inside of groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
