"""Prompts to token ids and back, by the model's own chat template.

Texts are data: `<|im_end|>` inside a prompt or caption is encoded as ordinary tokens, so no text can end its
turn or start another one.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

from jinja2 import TemplateError

from scalecap.engines.base import EngineError, Prompt
from scalecap.engines.option_tokens import option_token_ids
from scalecap.engines.reasoning import CLOSE, OPEN, find_switch, opens_reasoning, split_reasoning
from scalecap.text.suggestions import did_you_mean

_SYSTEM, _TEXT = "\ue000", "\ue001"
"""Placeholders for the texts while the template is rendered (private-use characters)."""


class PromptTokens(NamedTuple):
    """Token ids of a prompt, in which the image is still one token."""

    prefix: list[int]
    """The system turn and the image: the same for all requests about one image."""
    suffix: list[int]
    """The text and all that follows, up to where the reply begins."""


class DecodedReply(NamedTuple):
    """A generated reply as text."""

    text: str
    """The answer only."""
    reasoning: str
    reasoning_tokens: int
    """Tokens of the reasoning's text."""


class ChatTokenizer:
    """A tokenizer with its chat template.

    Args:
        tokenizer: a fast tokenizer of transformers.
        template: Jinja source; None uses the tokenizer's own.
        parts: the template expects message contents as lists of parts, as vision models do.
        variables: additional template variables (`model.<role>.chat_template_kwargs`).
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
        # The template's own words and many prompts are the same for every image.
        self._encode_piece = lru_cache(1024)(self._encode_new_piece)
        self.option_ids = lru_cache(1024)(partial(option_token_ids, self.encode))
        """First-token ids of each of several options; see `option_token_ids`."""

    def encode_prompt(self, prompt: Prompt) -> PromptTokens:
        """Token ids up to where the reply begins. EngineError if the chat template leaves the text out."""
        texts = {_SYSTEM: prompt.system, _TEXT: prompt.text}
        ids: list[int] = []
        plain, split = "", 0
        for piece in self._pieces(prompt.image is not None, bool(prompt.system)):
            if isinstance(piece, int):
                ids += [*self._encode_piece(plain, first=not ids), piece]
                plain = ""
            else:
                # A text is encoded together with the template's words around it.
                plain += texts.get(piece, piece)
                split = len(ids) if piece == _TEXT else split
        ids += self._encode_piece(plain, first=not ids)
        # A prefix is never empty, so engines need no special case.
        split = split or 1
        return PromptTokens(ids[:split], ids[split:])

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; control tokens in it are encoded as text."""
        ids: list[int] = self._encode(text)["input_ids"] if text else []
        return ids

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int, int]]]:
        """Token ids of plain text, and spans `(start, end, tokens)` that cover each character once.

        A span has several tokens only if they share a character, as the bytes of one do.
        """
        if not text:
            return [], []
        if self._adds_space and self._reply_begins_line:
            inside = self._after_break(text, return_offsets_mapping=True)
            if inside:
                offsets = [(max(0, start - 1), max(0, end - 1)) for start, end in inside["offset_mapping"]]
                return inside["input_ids"], merge_offsets(offsets, len(text))
        encoded = self._encode(text, return_offsets_mapping=True)
        return encoded["input_ids"], merge_offsets(encoded["offset_mapping"], len(text))

    def _encode_new_piece(self, text: str, *, first: bool) -> list[int]:
        """Token ids of a piece of the rendered template, `first` or after a control token."""
        if not first and self._adds_space and not self._adds_space_inside:
            inside = self._after_break(text)
            if inside:
                return inside["input_ids"]
        return self.encode(text)

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before every text, as SentencePiece does."""
        inside = self._after_break("a")
        return inside is not None and inside["input_ids"] != self.encode("a")

    @cached_property
    def _adds_space_inside(self) -> bool:
        """Whether it does so after a control token, too."""
        control = next((token.content for token in self._added.values() if token.special), "")
        ids = self.tokenizer(f"{control}a", add_special_tokens=False)["input_ids"]
        return bool(ids[1:] == self.encode("a"))

    @cached_property
    def _reply_begins_line(self) -> bool:
        """Whether the prompt ends with a line break."""
        last = self._pieces(image=False, system=True)[-1]
        return isinstance(last, str) and last.endswith("\n")

    def _after_break(self, text: str, **settings: Any) -> dict[str, list[Any]] | None:
        """A text's encoding as it is after a line break; None if the two share a token."""
        line_break = self.encode("\n")
        encoded = self._encode(f"\n{text}", **settings)
        if encoded["input_ids"][: len(line_break)] != line_break:
            return None
        return {name: values[len(line_break) :] for name, values in encoded.items()}

    def decode(self, ids: list[int]) -> str:
        """Text of generated tokens, without control tokens except `<think>` and `</think>`."""
        text, start = "", 0
        decode = partial(self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for end, token in enumerate([*ids, -1]):
            if token == -1 or token in self._reasoning_tags:
                text += decode(ids[start:end]) + self._reasoning_tags.get(token, "")
                start = end + 1
        return text

    def decode_reply(self, ids: list[int]) -> DecodedReply:
        """Decodes generated tokens into an answer and the reasoning before it."""
        text, reasoning = split_reasoning(self.decode(ids), opened=self.opens_reasoning)
        return DecodedReply(text, reasoning, len(self.encode(reasoning)))

    @cached_property
    def opens_reasoning(self) -> bool:
        """Whether the chat template ends every prompt with an open `<think>`."""
        return opens_reasoning(self._render(image=False, system=True))

    def warnings(self, name: str) -> list[str]:
        """Warnings for the user: reasoning that is on, template variables without effect.

        Args:
            name: the model's name.
        """
        source = self._template or self.tokenizer.get_chat_template()
        known = set(re.findall(r"\w+", source))
        lines = [
            f"{name}: its chat template has no variable {key!r}, so chat_template_kwargs.{key} has no effect"
            + (did_you_mean(key, close) if (close := get_close_matches(key, known)) else "")
            for key in self._variables
            if key not in known
        ]
        switch = find_switch(lambda extra: self._render(False, True, extra), source)
        fix = (
            f"turn it off with model.<role>.chat_template_kwargs.{switch}=false"
            if switch
            else "the template can't turn it off: use a variant that does not reason (…-Instruct)"
        )
        if self.opens_reasoning:
            lines.append(
                f"{name}: its chat template begins every reply inside <think>, so checks that read the first "
                f"token fail, and texts can't be scored as replies; {fix}"
            )
        elif switch and switch not in self._variables:
            lines.append(
                f"{name}: its chat template lets it reason before it answers, which costs tokens and spoils "
                f"checks that read the first token; {fix}"
            )
        return lines

    @cached_property
    def _reasoning_tags(self) -> dict[int, str]:
        """`<think>` and `</think>` by token id, if they are control tokens of this tokenizer."""
        return {
            index: token.content
            for index, token in self._added.items()
            if token.special and token.content in (OPEN, CLOSE)
        }

    def _encode(self, text: str, **settings: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, **settings)

    def _pieces(self, image: bool, system: bool) -> list[str | int]:
        """The rendered template, split into control tokens (ids), placeholders and other text."""
        if (image, system) not in self._rendered:
            control = {token.content: index for index, token in self._added.items() if token.special}
            tokens = [re.escape(each) for each in sorted((*control, _SYSTEM, _TEXT), key=len, reverse=True)]
            pieces = [
                piece for piece in re.split(f"({'|'.join(tokens)})", self._render(image, system)) if piece
            ]
            if _TEXT not in pieces:
                raise EngineError("the model's chat template leaves out the user's text")
            self._rendered[image, system] = [control.get(piece, piece) for piece in pieces]
        return self._rendered[image, system]

    @cached_property
    def _added(self) -> dict[int, Any]:
        added: dict[int, Any] = self.tokenizer.added_tokens_decoder
        return added

    def _render(self, image: bool, system: bool, extra: Mapping[str, Any] | None = None) -> str:
        """The prompt's text; without the system turn if the template refuses it, as Gemma 2's does."""
        text = {"type": "text", "text": _TEXT}
        parts = [{"type": "image"}, text] if image else [text]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts if self._parts else _TEXT}]
        if system:
            content = [{"type": "text", "text": _SYSTEM}] if self._parts else _SYSTEM
            messages.insert(0, {"role": "system", "content": content})
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                **{**self._variables, **(extra or {})},
            )
        except TemplateError:
            if not system:
                raise
            return self._render(image, False, extra)
        return rendered


def merge_offsets(offsets: Iterable[tuple[int, int]], length: int) -> list[tuple[int, int, int]]:
    """Spans `(start, end, tokens)` that cover `length` characters once, in order.

    Args:
        offsets: a tokenizer's `offset_mapping`: all bytes of a character have its offset, and spaces may
            belong to no token.
        length: characters of the text.
    """
    spans: list[tuple[int, int, int]] = []
    for start, end in offsets:
        if spans and start < spans[-1][1]:
            first, last, tokens = spans[-1]
            spans[-1] = (first, max(end, last), tokens + 1)
        else:
            first = spans[-1][1] if spans else 0
            spans.append((first, max(end, first), 1))
    if spans:
        spans[-1] = (spans[-1][0], length, spans[-1][2])
    return spans
