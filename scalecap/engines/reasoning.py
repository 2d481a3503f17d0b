"""Reasoning: what a model writes before its answer, which is never part of a caption.

Models mark it as `<think>…</think>`. A hybrid model does so or not, as a variable of its chat template says.
"""

from collections.abc import Callable, Mapping
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
SWITCHES = ("enable_thinking", "thinking")
"""Template variables by which the families turn reasoning off, when false."""


def split_reasoning(reply: str, *, opened: bool = False) -> tuple[str, str]:
    """The answer and the reasoning of a reply; a reply without reasoning is its own answer, unchanged.

    Reasoning stands at the beginning: `<think>…</think>`, several times too; without its end where the
    token limit cut it; or without its beginning, where the chat template had written that.

    Args:
        opened: the prompt ended inside `<think>`, so that all is reasoning until it is closed.
    """
    thoughts: list[str] = []
    rest, inside = reply, opened
    while True:
        before, close, after = rest.partition(CLOSE)
        begins = before.lstrip().startswith(OPEN)
        if not (inside or begins or (close and OPEN not in before)):
            break
        thoughts.append(before.lstrip().removeprefix(OPEN).strip())
        rest, inside = after.lstrip(), False
        if not close:
            break
    return rest, "\n\n".join(filter(None, thoughts))


def opens_thought(prompt: str) -> bool:
    """Whether a rendered prompt ends with an open `<think>`: the reply then begins inside a thought."""
    return prompt.rstrip().endswith(OPEN)


def find_switch(render: Callable[[Mapping[str, Any]], str], source: str) -> str | None:
    """The variable that turns off the reasoning which the chat template asks for or allows by default.

    None when false changes nothing, as with models that do not reason, or leaves a thought open.

    Args:
        render: a prompt by the template, with these variables besides those that are set already.
        source: the template.
    """
    default = render({})
    for name in SWITCHES:
        if name in source:
            off = render({name: False})
            if off != default and not opens_thought(off):
                return name
    return None
