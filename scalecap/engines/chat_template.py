"""From a prompt to token ids, by the model's own chat template.

Prompts and captions are text and nothing else: a `<|im_end|>` inside one is spelt out in ordinary
tokens, so that no text can end its turn or open another.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Any, NamedTuple

from scalecap.engines.base import EngineError, Prompt
from scalecap.engines.reasoning import CLOSE, OPEN, find_switch, opens_thought, split_reasoning
from scalecap.text.suggestions import did_you_mean

_SYSTEM, _TEXT = "\ue000", "\ue001"
"""Private-use characters that stand for the texts while the template is rendered."""


class Turn(NamedTuple):
    """Token ids of a prompt, its picture still one token."""

    prefix: list[int]
    """What all requests about one picture share: the system turn and the picture."""
    rest: list[int]
    """From the text to where the reply begins."""


class Said(NamedTuple):
    """A reply as text."""

    text: str
    """The answer alone."""
    reasoning: str
    reasoning_tokens: int
    """Tokens of the reasoning's text."""


class Chat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: Jinja source; None is the tokenizer's own.
        parts: the template wants contents as lists of parts, as those of models that see do.
        variables: more variables of the template (`model.<role>.chat_template_kwargs`).
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        parts: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._parts = parts
        self._variables = dict(variables or {})
        self._rendered: dict[tuple[bool, bool], list[str | int]] = {}

    def turn(self, prompt: Prompt) -> Turn:
        """Token ids of a prompt up to where the reply begins."""
        texts = {_SYSTEM: prompt.system, _TEXT: prompt.text}
        ids: list[int] = []
        plain, cut = "", 0
        for piece in self._pieces(prompt.image is not None, bool(prompt.system)):
            if isinstance(piece, int):
                ids += [*self.encode(plain), piece]
                plain = ""
            else:
                # Texts are encoded with the template's words around them, as one plain stretch.
                plain += texts.get(piece, piece)
                cut = len(ids) if piece == _TEXT else cut
        ids += self.encode(plain)
        # A prefix is never empty, so that engines need no case for that.
        cut = cut or 1
        return Turn(ids[:cut], ids[cut:])

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it are spelt out."""
        ids: list[int] = self._encode(text)["input_ids"] if text else []
        return ids

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Token ids of plain text, and spans `(start, end, tokens)` that cover its characters once.

        A span holds several tokens only where they share a character, as the bytes of one do.
        """
        if not text:
            return [], []
        encoded = self._encode(text, return_offsets_mapping=True)
        return encoded["input_ids"], tile(encoded["offset_mapping"], len(text))

    def decode(self, ids: list[int]) -> str:
        """Text of generated tokens, control tokens left out but for the marks of reasoning."""
        text, start = "", 0
        for place, index in enumerate([*ids, -1]):
            if index == -1 or index in self._marks:
                text += self._decode(ids[start:place]) + self._marks.get(index, "")
                start = place + 1
        return text

    def reply(self, ids: list[int]) -> Said:
        """Generated tokens as an answer and the reasoning before it."""
        text, reasoning = split_reasoning(self.decode(ids), opened=self.opens_thought)
        return Said(text, reasoning, len(self.encode(reasoning)))

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the template ends every prompt with an open `<think>`."""
        return opens_thought(self._render(image=False, system=True))

    def warnings(self, name: str) -> list[str]:
        """What a user of the model must know of its template: reasoning that is on, settings without effect.

        Args:
            name: the model's.
        """
        source = self._template or self.tokenizer.get_chat_template()
        known = set(re.findall(r"\w+", source))
        lines = [
            f"{name}: its chat template has no variable {key!r}, so chat_template_kwargs.{key} has no effect"
            + (did_you_mean(key, close) if (close := get_close_matches(key, known)) else "")
            for key in self._variables
            if key not in known
        ]
        switch = find_switch(lambda more: self._render(False, True, more), source)
        fix = (
            f"turn it off with model.<role>.chat_template_kwargs.{switch}=false"
            if switch
            else "the template has no switch for it: take a variant that does not reason (…-Instruct)"
        )
        if self.opens_thought:
            lines.append(
                f"{name}: its chat template begins every reply inside <think>, so checks that read the first "
                f"token can't be read, nor texts be rated as replies; {fix}"
            )
        elif switch and switch not in self._variables:
            lines.append(
                f"{name}: its chat template lets it reason before it answers, which costs tokens and spoils "
                f"checks that read the first token; {fix}"
            )
        return lines

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _marks(self) -> dict[int, str]:
        """Marks of reasoning that are control tokens of this tokenizer."""
        return {
            index: token.content
            for index, token in self._added.items()
            if token.special and token.content in (OPEN, CLOSE)
        }

    def _encode(self, text: str, **settings: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, **settings)

    def _pieces(self, image: bool, system: bool) -> list[str | int]:
        """The rendered template: control tokens as ids, all else as text, placeholders apart."""
        if (image, system) not in self._rendered:
            control = {token.content: index for index, token in self._added.items() if token.special}
            marks = [re.escape(mark) for mark in sorted((*control, _SYSTEM, _TEXT), key=len, reverse=True)]
            pieces = [
                piece for piece in re.split(f"({'|'.join(marks)})", self._render(image, system)) if piece
            ]
            if _TEXT not in pieces:
                raise EngineError("the model's chat template leaves the user's text out")
            self._rendered[image, system] = [control.get(piece, piece) for piece in pieces]
        return self._rendered[image, system]

    @cached_property
    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self.tokenizer.added_tokens_decoder
        return added

    def _render(self, image: bool, system: bool, more: Mapping[str, Any] | None = None) -> str:
        text = {"type": "text", "text": _TEXT}
        parts = [{"type": "image"}, text] if image else [text]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts if self._parts else _TEXT}]
        if system:
            content = [{"type": "text", "text": _SYSTEM}] if self._parts else _SYSTEM
            messages.insert(0, {"role": "system", "content": content})
        rendered: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            **{**self._variables, **(more or {})},
        )
        return rendered


def tile(offsets: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int, int]]:
    """Spans `(start, end, tokens)` that cover `length` characters once, in order.

    Args:
        offsets: characters of each token as a tokenizer tells them: bytes of one character all
            have its place, and spaces may belong to none.
        length: characters of the text.
    """
    spans: list[tuple[int, int, int]] = []
    for start, end in offsets:
        if spans and start < spans[-1][1]:
            first, before, tokens = spans[-1]
            spans[-1] = (first, max(end, before), tokens + 1)
        else:
            begin = spans[-1][1] if spans else 0
            spans.append((begin, max(end, begin), 1))
    if spans:
        spans[-1] = (spans[-1][0], length, spans[-1][2])
    return spans
