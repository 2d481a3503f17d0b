"""Loops: a step with `adds_to` appends what it finds to a column, and the steps from there run again.

`adds_to: known` makes a loop of the steps that depend on the column `known`, directly or through other steps,
and that the step itself depends on. Each round reads `known` with everything found so far, until a round
finds nothing or `rounds` rounds are done.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scalecap.interpreter.step import Step

JOINABLE = ("texts", "list", "regions")
"""Kinds of columns that can be concatenated over rounds."""


class LoopCycle(ValueError):
    """Loops read from each other, so none can be done before the others."""


class StepGroup(NamedTuple):
    """A single step, or the steps of a loop in order; the last one of a loop has `adds_to`."""

    steps: tuple[Step, ...]

    @property
    def adds_to(self) -> str | None:
        return self.steps[-1].adds_to

    @property
    def writes(self) -> list[str]:
        return [column for step in self.steps for column in step.writes]

    @property
    def reads(self) -> list[str]:
        """Columns read that the group does not write itself."""
        read = dict.fromkeys(column for step in self.steps for column in step.reads)
        return [column for column in read if column not in self.writes]

    @property
    def spends_budget(self) -> bool:
        """Whether it sends requests that count towards the budget; those of metrics do not."""
        return any(step.role and not step.is_metric for step in self.steps)

    async def run(
        self,
        values: Mapping[str, Any],
        run_step: Callable[[Step, Mapping[str, Any]], Awaitable[Mapping[str, Any]]],
        rounds: int,
    ) -> tuple[Mapping[str, Any], bool]:
        """The columns that its steps write, and whether it finished (a further round would find nothing).

        Args:
            values: the columns so far.
            run_step: returns a step's columns, given the columns that it can read.
            rounds: the most rounds of a loop, whose columns are those of all rounds, concatenated.
        """
        if self.adds_to is None:
            return await run_step(self.steps[0], values), True
        current = dict(values)
        joined: dict[str, list[Any]] = {column: [] for column in self.writes}
        for _ in range(rounds):
            for step in self.steps:
                current.update(await run_step(step, current))
            for column, items in joined.items():
                items += current[column] or []
            found = current[self.steps[-1].name]
            if not found:
                return joined, True
            current[self.adds_to] = [*(current[self.adds_to] or []), *found]
        return joined, False


def group_steps(steps: Sequence[Step]) -> list[StepGroup]:
    """The steps with those of each loop together, each group after the groups that it reads from.

    Args:
        steps: in an order in which each comes after the steps that it reads from.

    Raises:
        LoopCycle: loops read from each other.
    """
    loops = [find_loop(steps, step) for step in steps if step.adds_to]
    looped = {step.name for loop in loops for step in loop}
    waiting = [StepGroup(tuple(loop)) for loop in loops]
    waiting += [StepGroup((step,)) for step in steps if step.name not in looped]
    position = {step.name: index for index, step in enumerate(steps)}
    waiting.sort(key=lambda group: position[group.steps[0].name])
    unwritten = {column for group in waiting for column in group.writes}
    ordered: list[StepGroup] = []
    while waiting:
        ready = [index for index, group in enumerate(waiting) if not unwritten.intersection(group.reads)]
        if not ready:
            ends = [group.steps[-1].name for group in waiting if group.adds_to]
            names = ", ".join(map(repr, ends))
            raise LoopCycle(
                f"{ends[-1]}: adds_to: the loops of {names} read from each other; make them one loop"
            )
        group = waiting.pop(ready[0])
        unwritten.difference_update(group.writes)
        ordered.append(group)
    return ordered


def find_loop(steps: Sequence[Step], last: Step) -> list[Step]:
    """The steps of the loop that `last` ends, in order; empty if `last` does not depend on the column."""
    reached, needed = {last.adds_to}, set(last.reads)
    dependent = set()
    for step in steps:
        if reached.intersection(step.reads):
            reached.update(step.writes)
            dependent.add(step.name)
    for step in reversed(steps):
        if needed.intersection(step.writes):
            needed.update(step.reads)
    needed.update(last.writes)
    return [step for step in steps if step.name in dependent and needed.intersection(step.writes)]


def loop_problems(steps: Sequence[Step]) -> list[str]:
    """What is wrong with the loops among sorted steps."""
    found: list[str] = []
    loop_of: dict[str, str] = {}
    for last in steps:
        if not last.adds_to:
            continue
        loop = find_loop(steps, last)
        if last not in loop:
            found.append(
                f"{last.name}: adds_to: the step does not depend on {last.adds_to!r}, directly or through"
                " other steps, so every round would be the same"
            )
        for step in loop:
            if step.name in loop_of:
                other = loop_of[step.name]
                found.append(
                    f"{last.name}: adds_to: the step {step.name!r} is already in the loop of {other!r}"
                )
            loop_of[step.name] = last.name
            if "about" in step.stage.side or any(kind not in JOINABLE for kind in step.stage.kinds):
                found.append(
                    f"{last.name}: adds_to: {step.name!r} is in the loop, and its columns can't be"
                    " concatenated over rounds: only lists can, without an `about` column of positions"
                )
    if not found:
        try:
            group_steps(steps)
        except LoopCycle as error:
            found.append(str(error))
    return found
