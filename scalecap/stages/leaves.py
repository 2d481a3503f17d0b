"""Turn a structured caption into statements that can be checked."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from scalecap.stages import ModelClient, stage
from scalecap.text.templates import PromptError, Template


class Leaf(NamedTuple):
    """A value inside of a structured caption."""

    path: tuple[str | int, ...]
    """Keys and list indices that lead to it."""
    value: str | int | float | bool
    beside: Mapping[str, Any]
    """The record that contains it."""

    @property
    def pattern(self) -> str:
        """The path without list indices: `objects.attributes`."""
        return ".".join(key for key in self.path if isinstance(key, str))


@stage(side=["about"])
class Leaves:
    """A statement for each value of a structured caption, such as "The ball is red."

    `statements` maps paths to Jinja templates, such as `objects.count: "There are {{ value }} {{ name }}."`;
    their variables are the `value` and the other fields of its record. A value without a template, or whose
    template needs a missing or empty field, gets no statement, and the row is flagged "unchecked". The side
    column `about` has the {path, value} of each statement.
    """

    role: ClassVar[None] = None

    def __init__(self, *, statements: Mapping[str, Any]) -> None:
        self.statements = {}
        for path, text in statements.items():
            if not isinstance(text, str):
                raise ValueError(f"statements.{path}: expected a text, got {text!r:.80}")
            try:
                self.statements[path] = Template(text)
            except PromptError as error:
                raise ValueError(f"statements.{path}: {error}") from error

    async def __call__(self, client: ModelClient, *, value: Any) -> tuple[list[str], list[dict[str, Any]]]:
        texts, about = [], []
        for leaf in leaves(value):
            template = self.statements.get(leaf.pattern)
            try:
                if template is None:
                    raise PromptError("there is none")
                beside = {name: each for name, each in leaf.beside.items() if each is not None and each != ""}
                texts.append(template.render(**{**beside, "value": leaf.value}))
            except PromptError:
                client.flag("unchecked")
            else:
                about.append({"path": list(leaf.path), "value": leaf.value})
        return texts, about


def leaves(
    value: Any, path: tuple[str | int, ...] = (), beside: Mapping[str, Any] | None = None
) -> Iterator[Leaf]:
    """The values of a structured caption, in order, without null and empty texts."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, (*path, key), value)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from leaves(each, (*path, place), beside)
    elif value is not None and value != "":
        yield Leaf(path, value, beside or {})
