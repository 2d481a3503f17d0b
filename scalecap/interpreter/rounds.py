"""Steps taken again: what a step finds is added to a column, and the steps from there run once more.

`adds_to: known` on a step makes a loop of the steps between that column and the step: those that read it,
themselves or through others, and that the step needs. They run again, each time reading the column with what
was found so far, until a round finds nothing or `rounds` are done.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from scalecap.interpreter.step import Step


class Unit(NamedTuple):
    """One step, or the steps of a loop in their order, the last of which adds to the column."""

    steps: tuple[Step, ...]

    @property
    def adds_to(self) -> str | None:
        return self.steps[-1].adds_to

    @property
    def writes(self) -> list[str]:
        return [column for step in self.steps for column in step.writes]

    @property
    def reads(self) -> list[str]:
        """Columns read that are not its own."""
        read = dict.fromkeys(column for step in self.steps for column in step.reads)
        return [column for column in read if column not in self.writes]

    @property
    def asks(self) -> bool:
        """Whether it asks a model, other than to measure."""
        return any(step.role and not step.measures for step in self.steps)

    async def run(
        self,
        values: Mapping[str, Any],
        write: Callable[[Step, Mapping[str, Any]], Awaitable[Mapping[str, Any]]],
        rounds: int,
    ) -> tuple[Mapping[str, Any], bool]:
        """The columns of its steps, and whether a further round would find nothing.

        Args:
            values: the columns so far.
            write: gives a step's columns, from the columns that it sees.
            rounds: how often a loop is taken at most; its columns are those of all rounds, end to end.
        """
        if self.adds_to is None:
            return await write(self.steps[0], values), True
        seen = dict(values)
        joined: dict[str, list[Any]] = {column: [] for column in self.writes}
        for _ in range(rounds):
            for step in self.steps:
                seen.update(await write(step, seen))
            for column, items in joined.items():
                items += seen[column]
            found = seen[self.steps[-1].name]
            if not found:
                return joined, True
            seen[self.adds_to] = [*seen[self.adds_to], *found]
        return joined, False


def units(steps: Sequence[Step]) -> list[Unit]:
    """The steps, those of a loop together, each unit after those that it reads from.

    Args:
        steps: each after those that it reads from.
    """
    loops = [between(steps, step) for step in steps if step.adds_to]
    looped = {step.name for loop in loops for step in loop}
    waiting = [Unit(tuple(loop)) for loop in loops]
    waiting += [Unit((step,)) for step in steps if step.name not in looped]
    place = {step.name: at for at, step in enumerate(steps)}
    waiting.sort(key=lambda unit: place[unit.steps[0].name])
    unwritten = {column for unit in waiting for column in unit.writes}
    ordered: list[Unit] = []
    while waiting:
        ready = (at for at, each in enumerate(waiting) if not unwritten.intersection(each.reads))
        unit = waiting.pop(next(ready))
        unwritten.difference_update(unit.writes)
        ordered.append(unit)
    return ordered


def between(steps: Sequence[Step], last: Step) -> list[Step]:
    """The steps of the loop that `last` ends, in their order; none where it does not depend on the column."""
    reached, needed = {last.adds_to}, set(last.reads)
    after = set()
    for step in steps:
        if reached.intersection(step.reads):
            reached.update(step.writes)
            after.add(step.name)
    for step in reversed(steps):
        if needed.intersection(step.writes):
            needed.update(step.reads)
    needed.update(last.writes)
    return [step for step in steps if step.name in after and needed.intersection(step.writes)]


def problems(steps: Sequence[Step]) -> Iterator[str]:
    """What is wrong with the loops among steps that are in order."""
    taken: dict[str, str] = {}
    for last in steps:
        if not last.adds_to:
            continue
        loop = between(steps, last)
        if last not in loop:
            yield (
                f"{last.name}: adds_to: neither it nor a step that it reads from reads {last.adds_to!r}:"
                " nothing would change from round to round"
            )
        for step in loop:
            if step.name in taken:
                other = taken[step.name]
                yield f"{last.name}: adds_to: the step {step.name!r} is taken again by {other!r} too"
            taken[step.name] = last.name
            if "about" in step.stage.side or any(kind not in LISTS for kind in step.stage.kinds):
                yield (
                    f"{last.name}: adds_to: {step.name!r} would be taken again, and its columns can't be"
                    " joined: only lists can, without the places of items in other lists (`about`)"
                )


LISTS = ("texts", "list", "regions")
"""Kinds of columns that are joined from round to round."""
