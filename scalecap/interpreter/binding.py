"""Binding: the steps of the YAML are matched with the signatures of their stages, and checked.

A step is a column: its name is the column that it writes. `bind` reports all problems at once, before any
model loads, and sorts the steps so that each comes after those that it reads from.
"""

import importlib
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple

from scalecap import stages
from scalecap.engines.base import Sampling
from scalecap.interpreter.loops import loop_problems
from scalecap.interpreter.setting_types import convert
from scalecap.interpreter.step import BUDGET_LEFT, KIND_NAMES, Step, output_columns, prompt_templates
from scalecap.rows import OUTPUT_COLUMNS
from scalecap.stages import Kind, Parameter, Stage
from scalecap.text.suggestions import did_you_mean
from scalecap.text.templates import Expression, Template

RESERVED = (*OUTPUT_COLUMNS, "image")
"""Names that no step may have: keys of every output row, and the row's image."""
COMMON = ("when", "otherwise", "limit", "adds_to", "rounds")
"""Settings that steps of all stages have."""
CONTEXT = "row_context"
"""A column that prompts of `generate` may use without naming it in `variables`."""
DEFAULT_ROUNDS = 8
"""Default of `rounds` for a step with `adds_to`."""


class PipelineError(Exception):
    """The pipeline can't run; `problems` lists every reason, each with its fix."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the pipeline can't run:\n" + "\n".join(f"- {problem}" for problem in problems))
        self.problems = list(problems)


def bind(
    steps: Mapping[str, Any], offered: Mapping[str, str] | None, imports: Sequence[str], sampling: Sampling
) -> list[Step]:
    """The steps, each after those that it reads from; the arguments are those of `Pipeline.build`.

    Raises:
        PipelineError: lists all problems at once.
    """
    problems: list[str] = []
    for module in imports:
        try:
            importlib.import_module(module)
        except Exception as error:
            hint = "; give a module name, and put its folder on PYTHONPATH" if "/" in module else ""
            problems.append(f"imports: {module} can't be imported: {type(error).__name__}: {error}{hint}")
    found = {name: stage for name in steps if (stage := _find(name, steps, problems))}
    kinds = _kinds(steps, found, offered, problems)
    bound = []
    for name, stage in found.items():
        of_step: list[str] = []
        bound.append(_bind(name, stage, steps[name], kinds, offered is None, sampling, of_step))
        problems += [f"{name}: {problem}" for problem in of_step]
    ordered = _sort(bound, problems)
    problems += loop_problems(ordered)
    readers = [step for step in ordered if CONTEXT in step.reads and step.stage.name != "shared_words"]
    if CONTEXT in found and found[CONTEXT].name == "context" and not readers:
        problems.append(
            f"{CONTEXT}: no prompt uses it; choose one that does, such as prompts/caption=context"
        )
    if problems:
        raise PipelineError(problems)
    return ordered


def _find(name: str, steps: Mapping[str, Any], problems: list[str]) -> Stage | None:
    given = steps[name]
    if not isinstance(given, Mapping) or not isinstance(given.get("stage"), str):
        others = get_close_matches(name, [other for other in steps if other != name])
        hint = did_you_mean(name, others) if others else did_you_mean("", stages.names())
        problems.append(f"{name}: the step has no `stage:` key; add `stage: <name>`{hint}")
        return None
    try:
        stage = stages.find(given["stage"])
    except Exception as error:
        problems.append(f"{name}: {given['stage']!r} can't be loaded: {type(error).__name__}: {error}")
        return None
    if stage is None:
        requested = given["stage"]
        hint = " (is its module in pipeline.imports, or its package installed?)" if "/" in requested else ""
        problems.append(f"{name}: unknown stage {requested!r}{hint}{did_you_mean(requested, stages.names())}")
        return None
    try:
        return stage.for_step(given)
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return stage


def _kinds(
    steps: Mapping[str, Any],
    found: Mapping[str, Stage],
    offered: Mapping[str, str] | None,
    problems: list[str],
) -> dict[str, str]:
    """Every column of the data and of the steps, with its kind. A column has one writer."""
    kinds = dict(offered or {}) | {"row_id": "text"}
    writers = dict.fromkeys(kinds, "the data")
    for name in steps:
        stage = found.get(name)
        columns = output_columns(name, stage) if stage else [name]
        for column, kind in zip(columns, stage.kinds if stage else ("any",), strict=True):
            if column in RESERVED:
                problems.append(f"{name}: {column!r} is a reserved column name; choose another")
            elif column in writers:
                hint = ", or remove the column from the data" if writers[column] == "the data" else ""
                problems.append(
                    f"{name}: column {column!r} already comes from {writers[column]}; rename the step{hint}"
                )
            writers[column], kinds[column] = name, kind
    return kinds


def _bind(
    name: str,
    stage: Stage,
    given: Mapping[str, Any],
    kinds: Mapping[str, str],
    open_ended: bool,
    sampling: Sampling,
    problems: list[str],
) -> Step:
    """The step; what is wrong with it is appended to `problems`, and it must not run then."""
    given = {key: value for key, value in given.items() if key != "stage"}
    given = _with_named(given, stage, kinds)
    parameters = {**stage.columns, **stage.settings}
    common = {key: given.get(key) for key in COMMON if key not in parameters}
    valid = [*parameters, *common]
    problems += [
        f"{stage.name} has no setting {key!r}{did_you_mean(str(key), valid)}"
        for key in given
        if key not in valid
    ]
    columns: dict[str, str | Mapping[str, str]] = {}
    image_parameters: list[str] = []
    readable = _Readable(kinds, output_columns(name, stage), open_ended)
    for parameter in stage.columns.values():
        bound = given.get(parameter.name)
        if parameter.kind == "image":
            if parameter.required or bound is not None:
                image_parameters.append(parameter.name)
            if bound not in (None, "image"):
                problems.append(f"{parameter.name}: expected `image`, the row's image, got {bound!r}")
        elif (column := readable.bind(parameter, bound, problems)) is not None:
            columns[parameter.name] = column
    settings: dict[str, Any] = {}
    for parameter in stage.settings.values():
        if parameter.name not in given:
            settings[parameter.name] = parameter.default
            if parameter.required:
                value = "${prompts.<role>}" if parameter.annotation is Template else "…"
                problems.append(f"{stage.name} requires {parameter.name!r}: add `{parameter.name}: {value}`")
            continue
        try:
            settings[parameter.name] = convert(given[parameter.name], parameter.annotation, sampling)
        except ValueError as error:
            problems.append(f"{parameter.name}: {error}")
    for setting, value in settings.items():
        if value is None and Sampling in typing.get_args(stage.settings[setting].annotation):
            settings[setting] = sampling
    _check_prompts(stage, columns, settings, problems)
    when, otherwise = _condition(stage, common, readable, problems)
    limit = _limit(stage, common, readable, problems)
    adds_to, rounds = _loop(stage, common, readable, problems)
    unit: Callable[..., Any] = stage.unit
    if not problems:
        try:
            unit = stage.unit(**settings) if stage.uses_model else partial(stage.unit, **settings)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
        else:
            problems += filter(None, [getattr(unit, "check", lambda columns: None)(list(columns))])
    return Step(
        name, stage, columns, tuple(image_parameters), settings, unit, when, otherwise, limit, adds_to, rounds
    )


def _by_own_name(columns: Any) -> Any:
    """A column or a list of columns as a mapping, each by its own name; anything else as it is."""
    given = [columns] if isinstance(columns, str) else columns
    if isinstance(given, list) and all(isinstance(each, str) for each in given):
        return {each: each for each in given}
    return given


def _with_named(given: Mapping[str, Any], stage: Stage, kinds: Mapping[str, str]) -> Mapping[str, Any]:
    """The step's YAML, with `row_context` added to the variables of a prompt that uses it."""
    source, variables = given.get("prompt"), given.get("variables") or {}
    if stage.name != "generate" or CONTEXT not in kinds or not isinstance(source, str):
        return given
    variables = _by_own_name(variables)
    if not isinstance(variables, Mapping) or CONTEXT in variables or CONTEXT not in source:
        return given
    return {**given, "variables": {**variables, CONTEXT: CONTEXT}}


def _limit(
    stage: Stage, given: Mapping[str, Any], readable: "_Readable", problems: list[str]
) -> Expression | None:
    """The maximum number of items."""
    limit = given.get("limit")
    if limit is None:
        return None
    if not stage.uses_model or getattr(stage.unit, "role", "") is None:
        problems.append(f"limit: {stage.name} sends no requests to a model")
    try:
        expression: Expression = convert(str(limit) if type(limit) is int else limit, Expression, Sampling())
    except ValueError as error:
        problems.append(f"limit: {error}")
        return None
    if not readable.open_ended:
        names = [*readable.columns, BUDGET_LEFT]
        problems += [f"limit: {problem}" for problem in expression.problems(names)]
    return expression


def _loop(
    stage: Stage, given: Mapping[str, Any], readable: "_Readable", problems: list[str]
) -> tuple[str | None, int]:
    """The column that the step adds to, and the maximum number of rounds."""
    adds_to, rounds = given.get("adds_to"), given.get("rounds")
    if adds_to is None:
        if rounds is not None:
            problems.append("rounds: requires `adds_to: <column>`")
        return None, 1
    rounds = DEFAULT_ROUNDS if rounds is None else rounds
    if type(rounds) is not int or rounds < 1:
        problems.append(f"rounds: expected an integer of at least 1, got {rounds!r}")
    if stage.kinds[0] != "texts":
        problems.append(f"adds_to: the step writes {KIND_NAMES[stage.kinds[0]]}, not {KIND_NAMES['texts']}")
    texts = Parameter("adds_to", list[str], None)
    return str(readable.bind(texts, adds_to, problems)), rounds


def _condition(
    stage: Stage, given: Mapping[str, Any], readable: "_Readable", problems: list[str]
) -> tuple[Expression | None, str | None]:
    """The condition under which the step runs, and the column whose value it takes otherwise."""
    when, otherwise = given.get("when"), given.get("otherwise")
    if when is None:
        if otherwise is not None:
            problems.append("otherwise: requires `when: <expression>`")
        return None, None
    try:
        source = str(when).lower() if isinstance(when, bool) else when
        expression: Expression = convert(source, Expression, Sampling())
    except ValueError as error:
        problems.append(f"when: {error}")
        return None, None
    if not readable.open_ended:
        problems += [f"when: {problem}" for problem in expression.problems(readable.columns)]
    if otherwise is not None:
        anything = Parameter("otherwise", typing.Any, None)
        column, kinds = readable.bind(anything, otherwise, problems), readable.kinds
        if isinstance(column, str) and column in kinds and not _is_compatible(kinds[column], stage.kinds[0]):
            actual, expected = KIND_NAMES[kinds[column]], KIND_NAMES[stage.kinds[0]]
            problems.append(f"otherwise: {column!r} is {actual}, but the step writes {expected}")
    return expression, otherwise


class _Readable(NamedTuple):
    """What a step can read: all columns but those that it writes itself."""

    kinds: Mapping[str, str]
    """All columns with their kinds."""
    own: Collection[str]
    open_ended: bool
    """Whether the data may have further columns."""

    @property
    def columns(self) -> list[str]:
        return [column for column in self.kinds if column not in self.own]

    def bind(self, parameter: Parameter, given: Any, problems: list[str]) -> str | Mapping[str, str] | None:
        """The column, or mapping of names to columns, of a parameter; None if optional and left out."""
        name, kind = parameter.name, parameter.kind
        fitting = [column for column in self.columns if _is_compatible(self.kinds[column], kind)]
        mapped = kind in ("columns", "items")
        if mapped and isinstance(given, str | list):
            given = _by_own_name(given) or None
        if given is None:
            if parameter.required:
                example = "{<variable>: <column>}" if mapped else "<column>"
                problems.append(f"missing {name!r}: add `{name}: {example}`{did_you_mean(name, fitting)}")
            return None
        if mapped:
            if not isinstance(given, Mapping) or not given:
                problems.append(
                    f"{name}: expected a mapping of names to columns or a list of columns, got {given!r}"
                )
                return None
            wanted = {f"{name}.{variable}": column for variable, column in given.items()}
        else:
            wanted = {name: given}
        for place, column in wanted.items():
            if not isinstance(column, str):
                problems.append(f"{place}: expected the name of a column, got {column!r}")
            elif column not in self.kinds:
                if not self.open_ended:
                    hint = did_you_mean(column, fitting)
                    problems.append(f"{place}: no step and no data column is named {column!r}{hint}")
            elif not _is_compatible(self.kinds[column], kind):
                problems.append(
                    f"{place}: {column!r} is {KIND_NAMES[self.kinds[column]]}, not {KIND_NAMES[kind]}"
                )
        return dict(given) if mapped else str(given)


def _is_compatible(actual: str, expected: Kind) -> bool:
    if "regions" in (actual, expected):
        return actual == expected
    if expected == "items":
        return actual in ("texts", "list", "any")
    return actual == expected or actual == "any" or expected in ("any", "columns")


def _check_prompts(
    stage: Stage,
    columns: Mapping[str, str | Mapping[str, str]],
    settings: Mapping[str, Any],
    problems: list[str],
) -> None:
    """Check each prompt against the variables that the stage declares, or else those that the step names."""
    declared: Mapping[str, Sequence[str]] = getattr(stage.unit, "variables", {})
    offered: Sequence[str] = getattr(stage.unit, "offered", ())
    mapped = [name for column in columns.values() if not isinstance(column, str) for name in column]
    conditions = {place: value for place, value in settings.items() if isinstance(value, Expression)}
    for place, condition in conditions.items():
        problems += [f"{place}: {each}" for each in condition.problems(mapped)]
    used = {name for condition in conditions.values() for name in condition.variables}
    free = []
    for place, setting, template in prompt_templates(settings):
        valid = declared.get(setting, mapped)
        problems += [f"{place}: {each}" for each in template.problems(valid, offered)]
        if template.variables and setting not in declared:
            used |= template.variables
            free.append(place)
    if free:
        unused = [name for name in mapped if name not in used]
        problems += [f"{free[0]}: the variable {name!r} is never used" for name in unused]


def _sort(steps: Sequence[Step], problems: list[str]) -> list[Step]:
    """Topological order, ties in the order of the YAML."""
    writers = {column: step.name for step in steps for column in step.writes}
    by_name = {step.name: step for step in steps}
    graph = {step.name: [writers[c] for c in step.reads if c in writers] for step in steps}
    sorter, ready, ordered = TopologicalSorter(graph), list[str](), list[Step]()
    position = {name: index for index, name in enumerate(by_name)}
    try:
        sorter.prepare()
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__, reverse=True)
            ordered.append(by_name[ready.pop()])
            sorter.done(ordered[-1].name)
        return ordered
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        problems.append(f"the steps form a cycle: {cycle} (each reads the next one's column)")
        return []
