"""Reasoning that a model writes before its answer, in `<think>…</think>`; it is never part of a caption.

Hybrid models reason or not, depending on a variable of their chat template.
"""

from collections.abc import Callable, Mapping
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
SWITCHES = ("enable_thinking", "thinking")
"""Template variables that turn reasoning off when false, by model family."""


def split_reasoning(reply: str, *, opened: bool = False) -> tuple[str, str]:
    """Splits a reply into answer and reasoning; a reply without reasoning is returned unchanged.

    Reasoning comes first: one or more `<think>…</think>`, without the closing tag if the token limit cut it
    off, or without the opening tag if the chat template ended with it.

    Args:
        opened: the prompt ended inside `<think>`, so everything up to `</think>` is reasoning.
    """
    blocks: list[str] = []
    rest, inside = reply, opened
    while True:
        before, close, after = rest.partition(CLOSE)
        begins = before.lstrip().startswith(OPEN)
        if not (inside or begins or (close and OPEN not in before)):
            break
        blocks.append(before.lstrip().removeprefix(OPEN).strip())
        rest, inside = after.lstrip(), False
        if not close:
            break
    return rest, "\n\n".join(filter(None, blocks))


def opens_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt ends with an open `<think>`."""
    return prompt.rstrip().endswith(OPEN)


def find_switch(render: Callable[[Mapping[str, Any]], str], source: str) -> str | None:
    """The template variable that turns reasoning off.

    None if setting it to false changes nothing, as for models that do not reason, or leaves `<think>` open.

    Args:
        render: renders a prompt with additional template variables.
        source: the template.
    """
    default = render({})
    for name in SWITCHES:
        if name in source:
            off = render({name: False})
            if off != default and not opens_reasoning(off):
                return name
    return None
