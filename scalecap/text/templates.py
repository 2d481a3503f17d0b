"""Prompts are Jinja templates, conditions Jinja expressions: sandboxed, strict, with known variables."""

import math
from collections.abc import Collection, Iterator
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from scalecap.text.suggestions import did_you_mean

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


class PromptError(ValueError):
    """The template can't be parsed or rendered; the message says where and why."""


class Template:
    """A prompt with variables. Their values are never parsed as templates."""

    def __init__(self, source: str) -> None:
        """Raises PromptError if `source` is not valid Jinja."""
        try:
            self.variables = frozenset(meta.find_undeclared_variables(_environment.parse(source)))
            self._template = _environment.from_string(source)
        except TemplateSyntaxError as error:
            raise PromptError(f"line {error.lineno}: {error.message}") from error
        self.source = source

    def render(self, /, **values: Any) -> str:
        """The prompt with `values` filled in; PromptError if one is missing or forbidden."""
        try:
            return self._template.render(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(str(error)) from error

    def problems(self, valid: Collection[str], offered: Collection[str] = ()) -> list[str]:
        """What is wrong with this prompt, which must use `valid` variables and may use `offered` ones."""
        unknown = sorted(self.variables.difference(valid, offered))
        found = [f"unknown variable {{{{ {name} }}}}{did_you_mean(name, valid)}" for name in unknown]
        if valid and not self.variables:
            found.append("uses no variable; expected " + " or ".join(f"{{{{ {name} }}}}" for name in valid))
        if not found:
            try:
                self.render(**{name: f"<{name}>" for name in [*valid, *offered]})
            except PromptError as error:
                found.append(str(error))
        return found


class Expression:
    """A condition over columns, such as `golden_sentences | length < 3`."""

    def __init__(self, source: str) -> None:
        """Raises PromptError if `source` is not a valid Jinja expression."""
        try:
            self._evaluate = _environment.compile_expression(source, undefined_to_none=False)
            self.variables = frozenset(
                meta.find_undeclared_variables(_environment.parse("{{ " + source + " }}"))
            )
        except TemplateSyntaxError as error:
            raise PromptError(f"{source!r} is not an expression: {error.message}") from error
        self.source = source

    def holds(self, /, **values: Any) -> bool:
        """Whether it is true of `values`; PromptError if it can't be evaluated.

        A filter's result (`scores | selectattr('kept')`) is true when it has an item.
        """
        try:
            value = self._evaluate(values)
            return any(True for _ in value) if isinstance(value, Iterator) else bool(value)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(f"{self.source!r}: {error}") from error

    def number(self, /, **values: Any) -> float:
        """Its value as a number; PromptError if it can't be evaluated or is not a number."""
        try:
            value = self._evaluate(values)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptError(f"{self.source!r}: {error}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise PromptError(f"{self.source!r}: expected a number, got {value!r:.80}")
        return value

    def problems(self, valid: Collection[str]) -> list[str]:
        """Problems of this expression given the names of its variables."""
        unknown = sorted(self.variables.difference(valid))
        return [f"unknown name {name!r}{did_you_mean(name, valid)}" for name in unknown]
