"""The registry of stages, with their columns and settings as declared by their signatures."""

import asyncio
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

from scalecap.engines.base import Chosen, Generated, Image, Sampling, Scored
from scalecap.stages.regions import Region
from scalecap.stats import Interval

Kind = Literal["text", "texts", "number", "measures", "list", "image", "regions", "columns", "items", "any"]
Better = Literal["lower", "neither"]
ROLES = ("vlm", "llm", "judge")

Role = Annotated[str, "role"]
"""A setting that names the model role, one of ROLES."""
Columns = Annotated[Mapping[str, Any], "columns"]
"""A column parameter that the YAML gives as a mapping of names to columns."""
Items = Annotated[Mapping[str, Any], "items"]
"""A column parameter that the YAML gives as a mapping of names to columns, each of which is a list."""
Regions = Annotated[Sequence[Region | None], "regions"]
"""Parts of the row's image, written by a stage; a stage that takes `Views` is shown them."""
Views = Annotated[Sequence[Image | None], "regions"]
"""A column parameter for a column of regions: images, one an item, null where there is none."""
Measures = Annotated[Mapping[str, Any], "measures"]
"""What a metric returns: names to numbers, to shares `{"count": …, "of": …}`, or to such mappings.

Null is a number that this row does not have. The summary averages numbers over rows and pools shares;
`@stage(overall=…)` names a function for what only all rows together have (see `Overall`).
"""


Overall = Callable[[Iterable[Sequence[Any]]], Mapping[str, Interval]]
"""From what a step wrote in each row (its column, then its side columns) to numbers of all rows.

The rows are read from the disk as they are gone through, which may be done several times: there may be
millions, so a function holds of them only what it needs.
"""


class ModelClient(Protocol):
    """A stage's access to models, bound to one row and one step."""

    async def generate(
        self,
        text: str,
        *,
        image: Image | None = None,
        model: str = "vlm",
        sampling: Sampling | None = None,
        whole: bool = False,
        sample: int = 0,
        schema: str | None = None,
        fault: Callable[[str], str | None] = ...,
        retry: str | None = None,
    ) -> Generated:
        """Free text; a truncated, looping or otherwise faulty reply is drawn once more, then flagged.

        One that is refused or empty is flagged so.

        Args:
            whole: PromptTooLong also when the prompt left the reply too little of the context.
            sample: which draw of this prompt; each has its own seed.
            schema: JSON text of a JSON schema that engines which can make the reply follow.
            fault: what is wrong with a reply's text, as the flag to set; None when nothing is.
            retry: prompt sent once instead of `text` if the reply is a refusal or empty, flagged
                "reprompted".
        """
        ...

    async def choose(
        self,
        text: str,
        options: Sequence[str] = ("yes", "no"),
        *,
        image: Image | None = None,
        model: str = "vlm",
    ) -> Chosen:
        """One token: the probability of each option; all 0, with a flag, if the reply is none of them."""
        ...

    async def score(
        self, text: str, continuation: str, *, image: Image | None = None, model: str = "vlm"
    ) -> Scored:
        """How likely `continuation` is as the reply, token by token."""
        ...

    def allowed(self, costs: Sequence[int]) -> int:
        """How many of these items, the first ones, the step may send; it flags the rest as "over_limit".

        To be called before any request, so that the result does not depend on which reply comes first. A
        stage that never calls it runs only if its row has a request left.

        Args:
            costs: requests that each item takes; a second draw of a faulty reply comes on top.
        """
        ...

    def flag(self, name: str) -> None:
        """Adds a flag of this step to the row, and counts it."""
        ...


T = TypeVar("T")


async def together(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """All results in order, computed at once.

    When some fail, the first in order is raised after all have ended: which error a row gets, and
    which flags, then never depends on timing.
    """
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return typing.cast(list[T], results)


@dataclass(frozen=True)
class Parameter:
    """A column or a setting as its signature declares it; `default` is inspect's `empty` if none."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def kind(self) -> Kind:
        """What the column must hold (for a column parameter)."""
        return _kind(self.annotation)

    @property
    def takes_null(self) -> bool:
        """Whether the column may be null in a row."""
        return self.annotation is Any or types.NoneType in typing.get_args(self.annotation)


@dataclass(frozen=True)
class Stage:
    """A registered stage, as declared by its signatures."""

    name: str
    unit: Callable[..., Any]
    columns: Mapping[str, Parameter]
    settings: Mapping[str, Parameter]
    side: tuple[str, ...]
    kinds: tuple[Kind, ...]
    """Kinds of what it writes: its own column, then the side columns."""
    uses_model: bool
    """Whether it sends requests to a model."""
    summary: str
    """First line of its docstring."""
    overall: "Overall | None" = None
    """Numbers of a metric that only all rows together have."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """Top-level modules that it imports, each with what `pip install` brings it."""
    better: Mapping[str, Better] = field(default_factory=dict)
    """Of a metric's measures, by name, those of which the highest is not the best."""

    def for_step(self, step: Mapping[str, Any]) -> "Stage":
        """The stage for the YAML of one step: its columns may depend on its settings.

        Raises:
            ValueError: the settings contradict each other.
        """
        shape: Callable[[Stage, Mapping[str, Any]], Stage] | None = getattr(self.unit, "shape", None)
        return shape(self, step) if shape else self


_stages: dict[str, Stage] = {}
F = TypeVar("F", bound=Callable[..., Any])


class _Declared(TypedDict, total=False):
    name: str
    side: Sequence[str]
    overall: Overall
    requires: Mapping[str, str]
    better: Mapping[str, Better]


@overload
def stage(unit: F) -> F: ...
@overload
def stage(**declared: Unpack[_Declared]) -> Callable[[F], F]: ...
def stage(unit: F | None = None, **declared: Unpack[_Declared]) -> F | Callable[[F], F]:
    """Register a function or class as a stage. ValueError for a taken name, TypeError for a bad signature."""
    if unit is None:
        return lambda later: _register(later, **declared)
    return _register(unit, **declared)


def _register(unit: F, *, name: str = "", side: Sequence[str] = (), **declared: Any) -> F:
    name = name or re.sub(r"(?<!^)(?=[A-Z])", "_", unit.__name__).lower()
    package = unit.__module__.partition(".")[0]
    if "/" not in name and package not in ("scalecap", "__main__"):  # a notebook names its own as they are
        name = f"{package}/{name}"
    taken = _stages.get(name)
    if taken and _place(taken.unit) != _place(unit):
        raise ValueError(f"the stage name {name!r} is taken by {taken.unit.__module__}")
    _stages[name] = replace(_read(unit, name, tuple(side)), **declared)
    return unit


def _place(unit: Callable[..., Any]) -> tuple[str, str]:
    """Where it is defined: a notebook's cell that runs again, or a reloaded module, replaces its own."""
    return unit.__module__, unit.__qualname__


def _read(unit: Callable[..., Any], name: str, side: tuple[str, ...]) -> Stage:
    """The stage as the signatures of `unit` declare it."""
    uses_model = isinstance(unit, type)
    call: Any = getattr(unit, "__call__") if uses_model else unit  # noqa: B004, B009 (a class's own, not type's)
    hints = typing.get_type_hints(call, include_extras=True)
    columns = list(inspect.signature(call).parameters.values())
    if uses_model:
        columns = columns[2:]  # self and client
        setting_hints = typing.get_type_hints(unit.__init__, include_extras=True)
        settings = list(inspect.signature(unit).parameters.values())
    else:
        setting_hints = hints
        settings = [each for each in columns if each.kind is each.KEYWORD_ONLY]
        columns = [each for each in columns if each.kind is not each.KEYWORD_ONLY]
    if any(each.kind is not each.KEYWORD_ONLY for each in settings):
        raise TypeError(f"stage {name!r}: the settings of a class stand after `*` in __init__")
    for each, known in [*((c, hints) for c in columns), *((s, setting_hints) for s in settings)]:
        if each.name not in known or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise TypeError(f"stage {name!r}: {each} needs a type, and can't be * or **")
    written = hints.get("return", Any)
    parts = typing.get_args(written) if side else (written,)
    if len(parts) != 1 + len(side):
        raise TypeError(
            f"stage {name!r}: with side columns {list(side)} it returns a tuple of {1 + len(side)}"
        )
    return Stage(
        name=name,
        unit=unit,
        columns={c.name: Parameter(c.name, hints[c.name], c.default) for c in columns},
        settings={s.name: Parameter(s.name, setting_hints[s.name], s.default) for s in settings},
        side=side,
        kinds=tuple(_kind(part) for part in parts),
        uses_model=uses_model,
        summary=(inspect.getdoc(unit) or "").partition("\n")[0],
    )


_KINDS: Sequence[tuple[Any, Kind]] = (
    *((Columns, "columns"), (Items, "items"), (Regions, "regions"), (Views, "regions")),
    *((Measures, "measures"), (Image, "image"), (str, "text"), (int, "number"), (float, "number")),
)


def _kind(annotation: Any) -> Kind:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = {_kind(part) for part in typing.get_args(annotation) if part is not type(None)}
        return kinds.pop() if len(kinds) == 1 else "any"
    for known, kind in _KINDS:
        if annotation == known:
            return kind
    if typing.get_origin(annotation) in (list, Sequence):
        return "texts" if typing.get_args(annotation) == (str,) else "list"
    return "any"


def find(name: str) -> Stage | None:
    """The stage of that name; `package/name` may come from an entry point in group `scalecap.stages`."""
    _load_own()
    if name not in _stages and "/" in name:
        for entry in entry_points(group="scalecap.stages"):
            if entry.module.partition(".")[0] == name.partition("/")[0]:
                entry.load()
    return _stages.get(name)


def names() -> list[str]:
    """All registered names, sorted."""
    _load_own()
    return sorted(_stages)


def _load_own() -> None:
    for name in ("scalecap.stages", "scalecap.metrics"):
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
            importlib.import_module(f"{name}.{module.name}")
