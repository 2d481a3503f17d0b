"""Steps as the YAML gives them, bound to the signatures of their stages and checked.

A step is a column: its name is the column that it writes. `bind` finds all problems before any model
loads, and sorts the steps by the names they read.
"""

import importlib
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any

from scalecap import stages
from scalecap.engines.base import Sampling
from scalecap.interpreter import rounds
from scalecap.interpreter.fitting import fit
from scalecap.interpreter.step import BUDGET_LEFT, KIND_NAMES, Step, templates, written
from scalecap.rows import OUTPUT_COLUMNS
from scalecap.stages import Kind, Parameter, Stage
from scalecap.text.suggestions import did_you_mean
from scalecap.text.templates import Expression, Template

RESERVED = (*OUTPUT_COLUMNS, "image")
"""Names that no step may have: keys of every output row, and the row's picture."""
COMMON = ("when", "otherwise", "limit", "adds_to", "rounds")
"""Settings that a step of any stage has."""
CONTEXT = "row_context"
"""The column that any prompt of `generate` may show, if there is one."""
ROUNDS = 8
"""Rounds of a step with `adds_to`, if it does not say otherwise."""


class PipelineError(Exception):
    """The pipeline can't run; `problems` has every reason, each with its mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the pipeline can't run:\n" + "\n".join(f"- {problem}" for problem in problems))
        self.problems = list(problems)


def bind(
    steps: Mapping[str, Any], offered: Mapping[str, str] | None, imports: Sequence[str], sampling: Sampling
) -> list[Step]:
    """The steps in an order in which each comes after what it reads (see `Pipeline.build`)."""
    problems: list[str] = []
    for module in imports:
        try:
            importlib.import_module(module)
        except Exception as error:
            mend = "; write a module's name, and have its folder in PYTHONPATH" if "/" in module else ""
            problems.append(f"imports: {module} can't be imported: {type(error).__name__}: {error}{mend}")
    found = {name: stage for name in steps if (stage := _find(name, steps, problems))}
    kinds = _kinds(steps, found, offered, problems)
    bound = []
    for name, stage in found.items():
        about: list[str] = []
        bound.append(_bind(name, stage, steps[name], kinds, offered is None, sampling, about))
        problems += [f"{name}: {problem}" for problem in about]
    ordered = _sort(bound, problems)
    problems += rounds.problems(ordered)
    contexts = [name for name, stage in found.items() if stage.name == "context"]
    readers = [step for step in ordered if CONTEXT in step.reads and step.stage.name != "shared_words"]
    if CONTEXT in contexts and not readers:
        problems.append(
            f"{CONTEXT}: no prompt shows it: choose one that does, such as prompts/caption=context"
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
        wanted = given["stage"]
        outside = " (is its module in pipeline.imports, or its package installed?)" if "/" in wanted else ""
        problems.append(f"{name}: unknown stage {wanted!r}{outside}{did_you_mean(wanted, stages.names())}")
        return None
    try:
        return stage.given(given)
    except ValueError as error:
        problems.append(f"{name}: {error}")
        return stage


def _kinds(
    steps: Mapping[str, Any],
    found: Mapping[str, Stage],
    offered: Mapping[str, str] | None,
    problems: list[str],
) -> dict[str, str]:
    """Every column that there will be, with its kind. A column has one writer."""
    kinds = dict(offered or {}) | {"row_id": "text"}
    writers = dict.fromkeys(kinds, "the data")
    for name in steps:
        stage = found.get(name)
        columns = written(name, stage) if stage else [name]
        for column, kind in zip(columns, stage.kinds if stage else ("any",), strict=True):
            if column in RESERVED:
                problems.append(f"{name}: the name {column!r} is taken by the output: choose another")
            elif column in writers:
                mend = ", or leave the column out of the data" if writers[column] == "the data" else ""
                problems.append(
                    f"{name}: writes the column {column!r}, which {writers[column]} has too:"
                    f" choose another name for the step{mend}"
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
    """The step, with what does not fit in `problems`; such a step is not fit to run."""
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
    shown: dict[str, tuple[str, ...]] = {}
    for parameter in stage.columns.values():
        own = written(name, stage)
        if parameter.kind == "image":
            if parameter.required or given.get(parameter.name) is not None:
                shown[parameter.name] = _shown(parameter.name, given.get(parameter.name), problems)
            continue
        column = _column(parameter, given.get(parameter.name), kinds, own, open_ended, problems)
        if column is not None:
            columns[parameter.name] = column
    settings: dict[str, Any] = {}
    for parameter in stage.settings.values():
        if parameter.name not in given:
            settings[parameter.name] = parameter.default
            if parameter.required:
                value = "${prompts.<role>}" if parameter.annotation is Template else "…"
                problems.append(f"{stage.name} needs {parameter.name!r}: write `{parameter.name}: {value}`")
            continue
        try:
            settings[parameter.name] = fit(given[parameter.name], parameter.annotation, sampling)
        except ValueError as error:
            problems.append(f"{parameter.name}: {error}")
    for setting, value in settings.items():
        if value is None and Sampling in typing.get_args(stage.settings[setting].annotation):
            settings[setting] = sampling
    _check_prompts(stage, columns, settings, problems)
    when, otherwise = _condition(name, stage, common, kinds, open_ended, problems)
    others = None if open_ended else [column for column in kinds if column not in written(name, stage)]
    limit = _limit(stage, common, others, problems)
    adds_to, most = _again(name, stage, common, kinds, open_ended, problems)
    unit: Callable[..., Any] = stage.unit
    if not problems:
        try:
            unit = stage.unit(**settings) if stage.asks else partial(stage.unit, **settings)
        except (TypeError, ValueError) as error:
            problems.append(str(error))
        else:
            check: Callable[..., str | None] = getattr(unit, "check", lambda columns: None)
            problems += filter(None, [check(list(columns))])
    return Step(name, stage, columns, shown, settings, unit, when, otherwise, limit, adds_to, most)


def _with_named(given: Mapping[str, Any], stage: Stage, kinds: Mapping[str, str]) -> Mapping[str, Any]:
    """The step's YAML, where its prompt may name `row_context` without a mapping of its own."""
    source, variables = given.get("prompt"), given.get("variables") or {}
    if stage.name != "generate" or CONTEXT not in kinds or not isinstance(source, str):
        return given
    if isinstance(variables, str | list):
        variables = {each: each for each in ([variables] if isinstance(variables, str) else variables)}
    if not isinstance(variables, Mapping) or CONTEXT in variables or CONTEXT not in source:
        return given
    return {**given, "variables": {**variables, CONTEXT: CONTEXT}}


def _limit(
    stage: Stage, given: Mapping[str, Any], others: Collection[str] | None, problems: list[str]
) -> Expression | None:
    """The most items that the step asks about; `others` are the columns that it can read, None if unknown."""
    limit = given.get("limit")
    if limit is None:
        return None
    if not stage.asks or getattr(stage.unit, "role", "") is None:
        problems.append(f"limit: {stage.name} asks no model")
    try:
        expression: Expression = fit(str(limit) if type(limit) is int else limit, Expression, Sampling())
    except ValueError as error:
        problems.append(f"limit: {error}")
        return None
    if others is not None:
        problems += [f"limit: {problem}" for problem in expression.problems([*others, BUDGET_LEFT])]
    return expression


def _again(
    name: str,
    stage: Stage,
    given: Mapping[str, Any],
    kinds: Mapping[str, str],
    open_ended: bool,
    problems: list[str],
) -> tuple[str | None, int]:
    """The column that the step adds to, and how often the steps between are taken at most."""
    adds_to, most = given.get("adds_to"), given.get("rounds")
    if adds_to is None:
        if most is not None:
            problems.append("rounds: needs `adds_to: <column>`")
        return None, 1
    most = ROUNDS if most is None else most
    if type(most) is not int or most < 1:
        problems.append(f"rounds: expected a whole number from 1 on, got {most!r}")
    if stage.kinds[0] != "texts":
        problems.append(f"adds_to: the step writes {KIND_NAMES[stage.kinds[0]]}, not {KIND_NAMES['texts']}")
    texts = Parameter("adds_to", list[str], None)
    return str(_column(texts, adds_to, kinds, written(name, stage), open_ended, problems)), most


def _condition(
    name: str,
    stage: Stage,
    given: Mapping[str, Any],
    kinds: Mapping[str, str],
    open_ended: bool,
    problems: list[str],
) -> tuple[Expression | None, str | None]:
    """When the step runs, and the column whose value it has otherwise."""
    when, otherwise = given.get("when"), given.get("otherwise")
    if when is None:
        if otherwise is not None:
            problems.append("otherwise: needs `when: <expression>`")
        return None, None
    try:
        written_out = str(when).lower() if isinstance(when, bool) else when
        expression: Expression = fit(written_out, Expression, Sampling())
    except ValueError as error:
        problems.append(f"when: {error}")
        return None, None
    own = written(name, stage)
    others = [column for column in kinds if column not in own]
    if not open_ended:
        problems += [f"when: {problem}" for problem in expression.problems(others)]
    if otherwise is not None:
        anything = Parameter("otherwise", typing.Any, None)
        column = _column(anything, otherwise, kinds, own, open_ended, problems)
        if isinstance(column, str) and column in kinds and not _fits(kinds[column], stage.kinds[0]):
            held, wanted = KIND_NAMES[kinds[column]], KIND_NAMES[stage.kinds[0]]
            problems.append(f"otherwise: {column!r} holds {held}, and the step writes {wanted}")
    return expression, otherwise


def _shown(name: str, given: Any, problems: list[str]) -> tuple[str, ...]:
    """The pictures that a picture parameter takes."""
    if given not in (None, "image"):
        problems.append(f"{name}: there is no picture {given!r}: leave it out, or write `{name}: image`")
    return ("image",)


def _column(
    parameter: Parameter,
    given: Any,
    kinds: Mapping[str, str],
    own: Collection[str],
    open_ended: bool,
    problems: list[str],
) -> str | Mapping[str, str] | None:
    """What a column parameter reads; None for an optional one left out.

    `own` are the step's columns, which it can't read.
    """
    name, kind = parameter.name, parameter.kind
    fitting = [column for column in kinds if _fits(kinds[column], kind) and column not in own]
    mapped = kind in ("columns", "items")
    if mapped and isinstance(given, str | list):
        # Columns by their own names: one, or a list.
        given = {each: each for each in ([given] if isinstance(given, str) else given)} or None
    if given is None:
        if parameter.required:
            example = "{<variable>: <column>}" if mapped else "<column>"
            problems.append(f"reads {name!r}: write `{name}: {example}`{did_you_mean(name, fitting)}")
        return None
    if mapped:
        if not isinstance(given, Mapping) or not given:
            problems.append(
                f"{name}: {given!r} is no mapping: write `{name}: {{<name>: <column>}}`, or a list of columns"
            )
            return None
        wanted = {f"{name}.{variable}": column for variable, column in given.items()}
    else:
        wanted = {name: given}
    for place, column in wanted.items():
        if not isinstance(column, str):
            problems.append(f"{place}: {column!r} is no column's name (a stage's columns stand before `*`)")
        elif column not in kinds:
            if not open_ended:
                hint = did_you_mean(column, fitting)
                problems.append(f"{place}: no step and no data column is named {column!r}{hint}")
        elif not _fits(kinds[column], kind):
            problems.append(f"{place}: {column!r} holds {KIND_NAMES[kinds[column]]}, not {KIND_NAMES[kind]}")
    return dict(given) if mapped else str(given)


def _fits(held: str, wanted: Kind) -> bool:
    if "regions" in (held, wanted):
        return held == wanted
    if wanted == "items":
        return held in ("texts", "list", "any")
    return held == wanted or held == "any" or wanted in ("any", "columns")


def _check_prompts(
    stage: Stage,
    columns: Mapping[str, str | Mapping[str, str]],
    settings: Mapping[str, Any],
    problems: list[str],
) -> None:
    """Each prompt against the variables that the stage fills, or that the step's own mapping names."""
    declared: Mapping[str, Sequence[str]] = getattr(stage.unit, "variables", {})
    offered: Sequence[str] = getattr(stage.unit, "offered", ())
    mapped = [name for column in columns.values() if not isinstance(column, str) for name in column]
    conditions = {place: value for place, value in settings.items() if isinstance(value, Expression)}
    for place, condition in conditions.items():
        problems += [f"{place}: {each}" for each in condition.problems(mapped)]
    used = {name for condition in conditions.values() for name in condition.variables}
    free = []
    for place, setting, template in templates(settings):
        valid = declared.get(setting, mapped)
        problems += [f"{place}: {each}" for each in template.problems(valid, offered)]
        if template.variables and setting not in declared:
            used |= template.variables
            free.append(place)
    if free:
        unused = [name for name in mapped if name not in used]
        problems += [f"{free[0]}: the variable {name!r} is never used" for name in unused]


def _sort(steps: Sequence[Step], problems: list[str]) -> list[Step]:
    """Each step after those whose columns it reads, else in the order of the YAML."""
    writers = {column: step.name for step in steps for column in step.writes}
    by_name = {step.name: step for step in steps}
    graph = {step.name: [writers[c] for c in step.reads if c in writers] for step in steps}
    sorter, ready, ordered = TopologicalSorter(graph), list[str](), list[Step]()
    place = {name: at for at, name in enumerate(by_name)}
    try:
        sorter.prepare()
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__, reverse=True)
            ordered.append(by_name[ready.pop()])
            sorter.done(ordered[-1].name)
        return ordered
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        problems.append(f"steps that wait for each other: {circle} (each reads the next one's column)")
        return []
