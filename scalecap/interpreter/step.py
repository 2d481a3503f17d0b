"""A step: a stage bound to the columns that it reads and to its settings, and what it does for one row."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from scalecap.engines.base import Image
from scalecap.interpreter.allowance import Allowance, NothingLeft
from scalecap.rows import RowError
from scalecap.stages import Kind, ModelClient, Role, Stage
from scalecap.stages.regions import records
from scalecap.text.templates import Expression, Template

BUDGET_LEFT = "budget_left"
"""In `limit`: requests left of the pipeline's budget, infinite without one."""
KIND_NAMES: dict[str, str] = {
    "text": "a text",
    "texts": "a list of texts",
    "number": "a number",
    "measures": "a record of numbers",
    "list": "a list",
    "items": "a list",
    "regions": "parts of the picture",
    "columns": "what a prompt can hold",
    "any": "anything",
}
_TYPES: dict[str, Any] = {
    "text": str,
    "texts": list | tuple,
    "list": list | tuple,
    "regions": list | tuple,
    "number": Real,
    "measures": Mapping,
}
"""What a value of a kind is."""


@dataclass(frozen=True)
class Step:
    """A stage bound to the columns it reads and to its settings."""

    name: str
    stage: Stage
    columns: Mapping[str, str | Mapping[str, str]]
    """Column parameter to the column that it reads, or to a mapping of names to columns."""
    shown: Mapping[str, tuple[str, ...]]
    """Picture parameter to the pictures that it takes: "image" is the row's own."""
    settings: Mapping[str, Any]
    """All settings, defaults too."""
    unit: Callable[..., Any]
    """The stage with its settings: the object of a class, or a partial function."""
    when: Expression | None = None
    """Over columns: it runs for the rows for which this holds."""
    otherwise: str | None = None
    """The column whose value it takes in the other rows; None leaves it empty."""
    limit: Expression | None = None
    """Over columns and `budget_left`: the most items that it asks about."""
    adds_to: str | None = None
    """The column that its texts are added to; the steps from there are then taken again, see `rounds.py`."""
    rounds: int = 1
    """How often at most."""

    def missing(self) -> Iterator[str]:
        """What the stage needs and this machine does not have, each with the fix."""
        for module, package in self.stage.requires.items():
            if find_spec(module) is None:
                yield f'{self.name}: {self.stage.name} needs the module {module}: pip install "{package}"'
                return  # what it looks for itself may need it
        look: Callable[[], str | None] = getattr(self.unit, "missing", lambda: None)
        if reason := look():
            yield f"{self.name}: {reason}"

    def close(self) -> None:
        """Lets the stage give back what it holds, at the end of the run."""
        close: Callable[[], None] = getattr(self.unit, "close", lambda: None)
        close()

    @property
    def source(self) -> Path | None:
        """The file of a stage from outside of this package; None of one that comes with it."""
        module = self.stage.unit.__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file and module.partition(".")[0] != "scalecap" else None

    @property
    def reads(self) -> list[str]:
        """Columns read, each once; the picture is not among them."""
        bound = [[column] if isinstance(column, str) else column.values() for column in self.columns.values()]
        condition = sorted(self.when.variables) if self.when else []
        limit = sorted(self.limit.variables - {BUDGET_LEFT}) if self.limit else []
        other = [self.otherwise] if self.otherwise else []
        return list(dict.fromkeys(column for group in [*bound, condition, limit, other] for column in group))

    @property
    def writes(self) -> list[str]:
        """Columns written: its own, then the side columns."""
        return written(self.name, self.stage)

    @property
    def pictures(self) -> list[str]:
        """Pictures that it is shown, each once: "image" is the row's own."""
        return list(dict.fromkeys(name for names in self.shown.values() for name in names))

    @property
    def shows_picture(self) -> bool:
        """Whether it shows a model the row's picture, or parts of it."""
        return self.role is not None and bool(self.pictures or self._regions)

    @property
    def role(self) -> str | None:
        """The model role that it asks; None when it asks no model."""
        for name, parameter in self.stage.settings.items():
            if parameter.annotation == Role:
                return str(self.settings[name])
        return getattr(self.stage.unit, "role", "vlm") if self.stage.asks else None

    def __str__(self) -> str:
        return f"{self.name}: {self.stage.name}([{', '.join(self.reads)}]) -> [{', '.join(self.writes)}]"

    def plan(self) -> str:
        """Its line, the model asked, and its prompt with names in place of values."""
        lines = [str(self)]
        if self.when:
            lines.append(
                f"    when {self.when.source}" + (f", otherwise {self.otherwise}" if self.otherwise else "")
            )
        lines += [f"    {f'asks {self.role}{self._manner()}' if self.role else 'no model'}"]
        lines += [f"    at most {self.limit.source} items"] if self.limit else []
        if self.adds_to:
            again = f"taken again from there, until nothing is found, {self.rounds} rounds at most"
            lines.append(f"    adds what it finds to {self.adds_to}; {again}")
        for place, _, template in templates(self.settings):
            values = {name: f"<{name}>" for name in template.variables}
            values |= {name: str(self.settings[name]) for name in getattr(self.stage.unit, "offered", ())}
            for bound in self.columns.values():
                if not isinstance(bound, str):
                    values |= {name: f"<{column}>" for name, column in bound.items()}
            lines += [f"    {place}:", textwrap.indent(template.render(**values), "      | ")]
        return "\n".join(lines)

    def _manner(self) -> str:
        """How the model is asked: how often, and with which pictures."""
        each = [bound for name, bound in self.columns.items() if self.stage.columns[name].kind == "items"]
        lists = " and ".join(
            column for bound in each if not isinstance(bound, str) for column in bound.values()
        )
        samples = self.settings.get("samples")
        return "".join(
            [
                f", once an item of {lists}" if lists else "",
                f" where {where.source}" if (where := self.settings.get("where")) else "",
                f", {samples} samples" if samples else "",
                ", with the picture" if self.pictures else "",
                *(f", with each of {column}" for column in self._regions),
            ]
        )

    @property
    def _regions(self) -> list[str]:
        """Columns of regions that it is shown."""
        parameters = self.stage.columns
        return [str(bound) for name, bound in self.columns.items() if parameters[name].kind == "regions"]

    async def take(
        self,
        client: ModelClient,
        values: Mapping[str, Any],
        image: Image | None,
        allowance: Allowance | None = None,
    ) -> dict[str, Any]:
        """The columns written, from the columns so far; raises what the stage raises.

        `allowance` is what `client` consults.
        """
        if getattr(self.stage.unit, "sparse", False):
            values = {**dict.fromkeys(self.reads), **values}
        if missing := [column for column in self.reads if column not in values]:
            raise RowError("missing_column", f"the row has no column {missing[0]!r}")
        if self.when and not self.when.holds(**{name: values[name] for name in self.when.variables}):
            client.mark("skipped")
            return self._nothing(values)
        if self.limit and allowance:
            names = {name: values[name] for name in self.limit.variables - {BUDGET_LEFT}}
            allowance.limit = self.limit.number(**names, budget_left=allowance.left)
        arguments: dict[str, Any] = dict.fromkeys(self.shown, image)
        for parameter, bound in self.columns.items():
            arguments[parameter] = (
                values[bound] if isinstance(bound, str) else {n: values[c] for n, c in bound.items()}
            )
            if self.stage.columns[parameter].kind == "regions":
                arguments[parameter] = [region and region.image for region in arguments[parameter]]
        try:
            result = self.unit(client, **arguments) if self.stage.asks else self.unit(**arguments)
            if inspect.isawaitable(result):
                result = await result
        except NothingLeft:
            client.allowed([1])
            return self._nothing(values)
        parts = result if self.stage.side else (result,)
        if not isinstance(parts, tuple) or len(parts) != len(self.writes):
            raise TypeError(f"{self.stage.name} returned {parts!r:.80}, not a tuple of {len(self.writes)}")
        for part, kind in zip(parts, self.stage.kinds, strict=True):
            if part is not None and not holds(kind, part):
                raise TypeError(f"{self.stage.name} returned {part!r:.80}, not {KIND_NAMES[kind]}")
        return dict(zip(self.writes, parts, strict=True))

    def chosen(self, columns: Mapping[str, Any]) -> list[bool]:
        """Of a finished row: for each item, whether `where` holds; nothing where a column is not there."""
        where: Expression | None = self.settings.get("where")
        each, shared = self.columns.get("each", {}), self.columns.get("variables", {})
        if (
            where is None
            or isinstance(each, str)
            or isinstance(shared, str)
            or not set(self.reads) <= set(columns)
        ):
            return []
        values = {name: columns[column] for name, column in shared.items()}
        items = zip(*(columns[column] or [] for column in each.values()), strict=False)
        return [where.holds(**values, **dict(zip(each, item, strict=True))) for item in items]

    def _nothing(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row for which it does not run."""
        empty = {name: _empty(kind) for name, kind in zip(self.writes, self.stage.kinds, strict=True)}
        return empty | ({self.name: values[self.otherwise]} if self.otherwise else {})

    @property
    def measures(self) -> bool:
        """Whether it writes numbers about captions, and is no part of writing them."""
        return self.stage.kinds[0] in ("number", "measures")

    def output(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns written as the output has them: a picture's place in place of its pixels."""
        return {
            name: records(values[name]) if kind == "regions" else values[name]
            for name, kind in zip(self.writes, self.stage.kinds, strict=True)
            if name in values
        }


def holds(kind: str, value: Any) -> bool:
    """Whether a column of that kind may hold the value."""
    if kind == "texts" and isinstance(value, list | tuple):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, _TYPES.get(kind, object))


def _empty(kind: Kind) -> Any:
    """What stands in a column of a step that was skipped."""
    if kind in ("texts", "list", "regions"):
        return []
    return "" if kind == "text" else None


def templates(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Template]]:
    """Each prompt of a step: its place (`prompt`, or `ensemble.0` in a list), its setting, and itself."""
    for setting, value in settings.items():
        if isinstance(value, Template):
            yield setting, setting, value
        elif isinstance(value, list):
            prompts = [each for each in value if isinstance(each, Template)]
            yield from ((f"{setting}.{place}", setting, each) for place, each in enumerate(prompts))


def written(name: str, stage: Stage) -> list[str]:
    """The columns that a step of that name and stage writes."""
    return [name, *(f"{name}_{side}" for side in stage.side)]
