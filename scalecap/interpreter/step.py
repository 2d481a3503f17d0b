"""A step: a stage bound to the columns that it reads and to its settings, and how it runs for one row."""

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from scalecap.engines.base import Image
from scalecap.interpreter.allowance import Allowance, BudgetExhausted
from scalecap.rows import RowError
from scalecap.stages import Kind, ModelClient, Role, Stage
from scalecap.stages.regions import records
from scalecap.text.templates import Expression, PromptError, Template

BUDGET_LEFT = "budget_left"
"""Variable of `limit`: requests left of the pipeline's budget, UNLIMITED without one."""
UNLIMITED = 10**15
"""`budget_left` without a budget: infinity could not be divided by `//` or made an integer."""
KIND_NAMES: dict[str, str] = {
    "text": "a text",
    "texts": "a list of texts",
    "number": "a number",
    "measures": "a record of numbers",
    "list": "a list",
    "items": "a list",
    "regions": "regions of the image",
    "columns": "a value for a prompt",
    "any": "anything",
}
_PYTHON_TYPES: dict[str, Any] = {
    "text": str,
    "texts": list | tuple,
    "list": list | tuple,
    "regions": list | tuple,
    "number": Real,
    "measures": Mapping,
}
"""Python type of the values of a kind."""


@dataclass(frozen=True)
class Step:
    """A stage bound to the columns that it reads and to its settings."""

    name: str
    stage: Stage
    columns: Mapping[str, str | Mapping[str, str]]
    """Column parameter to the column that it reads, or to a mapping of names to columns."""
    image_parameters: tuple[str, ...]
    """Parameters that get the row's image."""
    settings: Mapping[str, Any]
    """All settings, including defaults."""
    unit: Callable[..., Any]
    """The stage with its settings: an instance of its class, or a partial function."""
    when: Expression | None = None
    """Condition over columns: the step is skipped for rows for which it does not hold."""
    otherwise: str | None = None
    """The column whose value it takes when skipped; None leaves it empty."""
    limit: Expression | None = None
    """Maximum number of items that it sends, an expression over columns and `budget_left`."""
    adds_to: str | None = None
    """The column that its texts are appended to before the steps from there run again; see `loops.py`."""
    rounds: int = 1
    """Maximum number of rounds of that loop."""

    def missing_requirements(self) -> Iterator[str]:
        """Modules and files that the stage requires and this machine does not have, each with the fix."""
        for module, package in self.stage.requires.items():
            if find_spec(module) is None:
                yield f'{self.name}: {self.stage.name} needs the module {module}: pip install "{package}"'
                return  # the stage's own check may import it
        if reason := getattr(self.unit, "missing", lambda: None)():
            yield f"{self.name}: {reason}"

    def close(self) -> None:
        """Let the stage release its resources, at the end of the run."""
        getattr(self.unit, "close", lambda: None)()

    @property
    def source(self) -> Path | None:
        """Source file of a stage from another package; None for the stages of this one."""
        module = self.stage.unit.__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file) if file and module.partition(".")[0] != "scalecap" else None

    @property
    def reads(self) -> list[str]:
        """Columns read, each once, without the image."""
        bound = [[column] if isinstance(column, str) else column.values() for column in self.columns.values()]
        condition = sorted(self.when.variables) if self.when else []
        limit = sorted(self.limit.variables - {BUDGET_LEFT}) if self.limit else []
        other = [self.otherwise] if self.otherwise else []
        return list(dict.fromkeys(column for group in [*bound, condition, limit, other] for column in group))

    @property
    def writes(self) -> list[str]:
        """Columns written: its own, then the side columns."""
        return output_columns(self.name, self.stage)

    @property
    def shows_image(self) -> bool:
        """Whether its requests contain the row's image or regions of it."""
        return self.role is not None and bool(self.image_parameters or self._regions)

    @property
    def where(self) -> Expression | None:
        """The condition that chooses items, where the stage has such a setting."""
        where = self.settings.get("where")
        return where if isinstance(where, Expression) else None

    @property
    def role(self) -> str | None:
        """The model role that its requests go to; None if it sends none."""
        for name, parameter in self.stage.settings.items():
            if parameter.annotation == Role:
                return str(self.settings[name])
        return getattr(self.stage.unit, "role", "vlm") if self.stage.uses_model else None

    def __str__(self) -> str:
        return f"{self.name}: {self.stage.name}([{', '.join(self.reads)}]) -> [{', '.join(self.writes)}]"

    def plan(self) -> str:
        """Inputs, outputs, model, settings with defaults, and prompts with names in place of values."""
        lines = [str(self)]
        if self.when:
            lines.append(
                f"    when {self.when.source}" + (f", otherwise {self.otherwise}" if self.otherwise else "")
            )
        lines += [f"    {f'asks {self.role}{self._request_details()}' if self.role else 'no model'}"]
        lines += [f"    at most {self.limit.source} items"] if self.limit else []
        if self.adds_to:
            repeated = f"repeated from there until nothing new is found, at most {self.rounds} rounds"
            lines.append(f"    adds what it finds to {self.adds_to}; {repeated}")
        if shown := self._shown_settings():
            lines.append(f"    {shown}")
        for place, _, template in prompt_templates(self.settings):
            values = {name: f"<{name}>" for name in template.variables}
            values |= {name: str(self.settings[name]) for name in getattr(self.stage.unit, "offered", ())}
            for bound in self.columns.values():
                if not isinstance(bound, str):
                    values |= {name: f"<{column}>" for name, column in bound.items()}
            lines += [f"    {place}:", textwrap.indent(template.render(**values), "      | ")]
        return "\n".join(lines)

    def _shown_settings(self) -> str:
        """Numbers, switches and choices among its settings, but for those that the plan shows otherwise."""
        found = {
            name: self.settings[name]
            for name, parameter in self.stage.settings.items()
            if parameter.annotation != Role and name != "samples"
        }
        return ", ".join(
            f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
            for name, value in found.items()
            if isinstance(value, bool | int | float | str)
        )

    def _request_details(self) -> str:
        """How many requests it sends, and with which images."""
        each = [bound for name, bound in self.columns.items() if self.stage.columns[name].kind == "items"]
        lists = " and ".join(
            column for bound in each if not isinstance(bound, str) for column in bound.values()
        )
        samples = self.settings.get("samples")
        return "".join(
            [
                f", once an item of {lists}" if lists else "",
                f" where {self.where.source}" if self.where else "",
                f", {samples} samples" if samples else "",
                ", with the image" if self.image_parameters else "",
                *(f", with each of {column}" for column in self._regions),
            ]
        )

    @property
    def _regions(self) -> list[str]:
        """Columns of regions whose images it shows to a model."""
        parameters = self.stage.columns
        return [str(bound) for name, bound in self.columns.items() if parameters[name].kind == "regions"]

    async def run(
        self,
        client: ModelClient,
        values: Mapping[str, Any],
        image: Image | None,
        allowance: Allowance | None = None,
    ) -> dict[str, Any]:
        """Call the stage on one row; returns the columns written and raises what the stage raises.

        Args:
            values: the row's columns so far.
            image: the row's image, if any step needs it.
            allowance: the one that `client` consults; the step's `limit` is set on it.
        """
        if getattr(self.stage.unit, "sparse", False):
            values = {**dict.fromkeys(self.reads), **values}
        if missing := [column for column in self.reads if column not in values]:
            raise RowError("missing_column", f"the row has no column {missing[0]!r}")
        if self.when and not self.when.holds(**{name: values[name] for name in self.when.variables}):
            client.flag("skipped")
            return self._skipped(values)
        if self.adds_to:
            _check_kind(f"adds_to: {self.adds_to!r}", "texts", values.get(self.adds_to))
        if self.limit and allowance:
            names = {name: values[name] for name in self.limit.variables - {BUDGET_LEFT}}
            allowance.items = self.limit.number(**names, budget_left=min(allowance.requests, UNLIMITED))
        arguments: dict[str, Any] = dict.fromkeys(self.image_parameters, image)
        for parameter, bound in self.columns.items():
            arguments[parameter] = (
                values[bound] if isinstance(bound, str) else {n: values[c] for n, c in bound.items()}
            )
            declared = self.stage.columns[parameter]
            if arguments[parameter] is None and not declared.takes_null:
                expected = KIND_NAMES[declared.kind]
                raise RowError("null_column", f"column {bound!r} is null in this row, expected {expected}")
            _check_kind(f"column {bound!r}", declared.kind, arguments[parameter])
            if declared.kind == "regions":
                arguments[parameter] = [region and region.image for region in arguments[parameter]]
        try:
            result = self.unit(client, **arguments) if self.stage.uses_model else self.unit(**arguments)
            if inspect.isawaitable(result):
                result = await result
        except BudgetExhausted:
            client.allowed([1])  # counts and flags one item as over the limit
            return self._skipped(values)
        parts = result if self.stage.side else (result,)
        if not isinstance(parts, tuple) or len(parts) != len(self.writes):
            raise TypeError(
                f"{self.stage.name} returned {parts!r:.80}, expected a tuple of {len(self.writes)}"
            )
        for part, kind in zip(parts, self.stage.kinds, strict=True):
            if part is not None and not is_of_kind(kind, part):
                raise TypeError(f"{self.stage.name} returned {part!r:.80}, expected {KIND_NAMES[kind]}")
        return dict(zip(self.writes, parts, strict=True))

    def selected(self, columns: Mapping[str, Any]) -> list[bool]:
        """For each item of a finished row, whether `where` holds; empty if a column is missing, or if `where`
        fails (on a row of another config)."""
        where = self.where
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
        with suppress(PromptError):
            return [where.holds(**values, **dict(zip(each, item, strict=True))) for item in items]
        return []

    def _skipped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a row for which the step does not run."""
        empty = {name: _empty(kind) for name, kind in zip(self.writes, self.stage.kinds, strict=True)}
        if self.otherwise is None:
            return empty
        value = values[self.otherwise]
        _check_kind(f"otherwise: {self.otherwise!r}", self.stage.kinds[0], value)
        return empty | {self.name: value}

    @property
    def is_metric(self) -> bool:
        """Whether it measures captions instead of taking part in writing them."""
        return self.stage.kinds[0] in ("number", "measures")

    def output(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns written, as in the output: regions as their boxes, without pixels."""
        return {
            name: records(values[name]) if kind == "regions" else values[name]
            for name, kind in zip(self.writes, self.stage.kinds, strict=True)
            if name in values
        }


def is_of_kind(kind: str, value: Any) -> bool:
    """Whether a column of that kind may have the value."""
    if kind == "texts" and isinstance(value, list | tuple):
        return all(isinstance(each, str) for each in value)
    return isinstance(value, _PYTHON_TYPES.get(kind, object))


def _check_kind(what: str, kind: str, value: Any) -> None:
    """Raises TypeError if a column has a value of another kind; null is of every kind."""
    if value is not None and not is_of_kind(kind, value):
        raise TypeError(f"{what} is {value!r:.80}, expected {KIND_NAMES[kind]}")


def _empty(kind: Kind) -> Any:
    """The value of a column whose step was skipped."""
    if kind in ("texts", "list", "regions"):
        return []
    return "" if kind == "text" else None


def prompt_templates(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, Template]]:
    """Each prompt of a step as (path, setting, template); the path is `prompt`, or `ensemble.0` in a list."""
    for setting, value in settings.items():
        if isinstance(value, Template):
            yield setting, setting, value
        elif isinstance(value, list):
            prompts = [each for each in value if isinstance(each, Template)]
            yield from ((f"{setting}.{index}", setting, each) for index, each in enumerate(prompts))


def output_columns(name: str, stage: Stage) -> list[str]:
    """The columns that a step of that name and stage writes."""
    return [name, *(f"{name}_{side}" for side in stage.side)]
