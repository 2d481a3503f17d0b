"""From a prompt to token ids, by the model's own chat template.

Prompts and captions are text and nothing else: a `<|im_end|>` inside one is spelt out in ordinary
tokens, so that no text can end its turn or open another.
"""

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

from scalecap.engines.base import EngineError, Prompt

_SYSTEM, _TEXT = "\ue000", "\ue001"
"""Private-use characters that stand for the texts while the template is rendered."""


class Turn(NamedTuple):
    """Token ids of a prompt, its picture still one token."""

    prefix: list[int]
    """What all requests about one picture share: the system turn and the picture."""
    rest: list[int]
    """From the text to where the reply begins."""


class Chat:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: Jinja source; None is the tokenizer's own.
        parts: the template wants contents as lists of parts, as those of models that see do.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, parts: bool = True) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._parts = parts
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
        """Text of generated tokens, control tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

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

    def _render(self, image: bool, system: bool) -> str:
        text = {"type": "text", "text": _TEXT}
        parts = [{"type": "image"}, text] if image else [text]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts if self._parts else _TEXT}]
        if system:
            content = [{"type": "text", "text": _SYSTEM}] if self._parts else _SYSTEM
            messages.insert(0, {"role": "system", "content": content})
        rendered: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=True
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
