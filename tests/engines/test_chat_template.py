import copy
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from scalecap.engines.base import Prompt
from scalecap.engines.chat_template import ChatTokenizer, merge_offsets

transformers: Any = pytest.importorskip("transformers", reason='needs pip install "scalecap[cpu]"')


@pytest.fixture(scope="session")
def chat(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer(transformers.AutoTokenizer.from_pretrained(tiny_model))


@pytest.mark.parametrize(
    ("offsets", "length", "spans"),
    [
        ([(0, 3), (3, 7)], 7, [(0, 3, 1), (3, 7, 1)]),
        ([(0, 1), (1, 2), (1, 2), (2, 3)], 3, [(0, 1, 1), (1, 2, 2), (2, 3, 1)]),
        ([(0, 1), (0, 2), (2, 3)], 3, [(0, 2, 2), (2, 3, 1)]),
        ([(1, 3), (4, 6)], 7, [(0, 3, 1), (3, 7, 1)]),
        ([], 0, []),
    ],
    ids=["plain", "bytes of a character", "byte and more", "spaces left out", "nothing"],
)
def test_merge_offsets(
    offsets: list[tuple[int, int]], length: int, spans: list[tuple[int, int, int]]
) -> None:
    assert merge_offsets(offsets, length) == spans


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(max_size=60) | st.sampled_from(["<|im_end|>", "🦁<|image_pad|>é", "\ue000\ue001"]))
def test_spans_cover_any_text_once(chat: ChatTokenizer, text: str) -> None:
    ids, spans = chat.encode_with_spans(text)
    assert "".join(text[start:end] for start, end, _ in spans) == text
    assert sum(count for *_, count in spans) == len(ids)
    assert not set(ids) & set(chat.tokenizer.all_special_ids)


@pytest.mark.parametrize("system", ["You are a helpful assistant.", ""])
@pytest.mark.parametrize("parts", [True, False])
def test_ids_are_the_templates(chat: ChatTokenizer, system: str, parts: bool) -> None:
    prompt = Prompt("\n Is it true?\n", system=system)
    messages = [{"role": "system", "content": system}] * bool(system) + [
        {"role": "user", "content": prompt.text}
    ]
    text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turn = ChatTokenizer(chat.tokenizer, parts=parts).encode_prompt(prompt)
    assert turn.prefix + turn.suffix == chat.tokenizer(text)["input_ids"]
    assert turn.prefix


@pytest.mark.parametrize("parts", [True, False])
def test_a_template_without_system_turns(chat: ChatTokenizer, parts: bool) -> None:
    """Gemma 2's refuses them."""
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + chat.tokenizer.chat_template
    )
    refused = ChatTokenizer(chat.tokenizer, refusing, parts)
    without = ChatTokenizer(chat.tokenizer, parts=parts).encode_prompt(Prompt("Is it?", system=""))
    assert refused.encode_prompt(Prompt("Is it?", system="Be brief.")) == without
    assert refused.warnings("m") == []
    failing = ChatTokenizer(chat.tokenizer, "{{ raise_exception('not at all') }}", parts)
    with pytest.raises(TemplateError, match="not at all"):
        failing.encode_prompt(Prompt("Is it?"))


def spaced(scheme: str) -> Any:
    """A tokenizer of single letters that puts a space before texts, as SentencePiece does."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace

    letters = ["<unk>", "▁", "\n", *string.ascii_letters, *string.punctuation]
    tokenizer = Tokenizer(BPE({each: index for index, each in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme=scheme, split=False)
    controls = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in controls])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    fast.chat_template = turns + "{{ '<|im_start|>assistant\\n' }}"
    return fast


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_ids_are_the_templates_where_the_tokenizer_puts_a_space_before_texts(scheme: str) -> None:
    tokenizer = spaced(scheme)
    chat = ChatTokenizer(tokenizer, parts=False)
    turn = chat.encode_prompt(Prompt("Is it true?\n", system="Be brief."))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is it true?\n"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert turn.prefix + turn.suffix == tokenizer(text, add_special_tokens=False)["input_ids"]
    ids, spans = chat.encode_with_spans("A cat.")
    whole = tokenizer(f"{text}A cat.", add_special_tokens=False)["input_ids"]
    assert turn.prefix + turn.suffix + ids == whole
    assert [(start, end) for start, end, _ in spans] == [(at, at + 1) for at in range(6)]


def test_what_prompts_share_is_encoded_once(chat: ChatTokenizer) -> None:
    encoded: list[str] = []

    class Counting:
        def __call__(self, text: str, **settings: Any) -> Any:
            encoded.append(text)
            return chat.tokenizer(text, **settings)

        def __getattr__(self, name: str) -> Any:
            return getattr(chat.tokenizer, name)

    counted = ChatTokenizer(Counting())
    counted.encode_prompt(Prompt("Is there a cat?", system="Look well."))
    encoded.clear()
    counted.encode_prompt(Prompt("Is there a dog?", system="Look well."))
    (text,) = encoded
    assert "Is there a dog?" in text


def test_the_image_is_in_the_prefix(chat: ChatTokenizer) -> None:
    image: Any = object()
    one, other = (
        chat.encode_prompt(Prompt("Is it true?", image)),
        chat.encode_prompt(Prompt("Is it a cat?", image)),
    )
    assert one.prefix == other.prefix
    assert chat.tokenizer.convert_tokens_to_ids("<|image_pad|>") in one.prefix


def test_a_template_beside_the_tokenizer_is_used(chat: ChatTokenizer) -> None:
    short = ChatTokenizer(chat.tokenizer, "{{ messages[-1].content[-1].text }}<|im_end|>")
    turn = short.encode_prompt(Prompt("yes"))
    assert turn.prefix + turn.suffix == [*chat.encode("yes"), 299]


TURN = r"{{ messages[-1].content[-1].text + '<|im_end|>assistant\n' }}"
CLOSED, OPENED = r"{{ '<think>\n\n</think>\n\n' }}", r"{{ '<think>\n' }}"
SWITCH = TURN + "{% if enable_thinking is defined and enable_thinking is false %}" + CLOSED
HYBRID = SWITCH + "{% else %}" + OPENED + "{% endif %}"
"""The template opens the reasoning, as Qwen3.5 and newer do."""
LENIENT = SWITCH + "{% endif %}"
"""The model opens it, as Qwen3 does."""
OFF = TURN + "{% if enable_thinking is true %}" + OPENED + "{% else %}" + CLOSED + "{% endif %}"
"""Reasoning is off by default, as in the smallest Qwen3.5."""
ALWAYS = TURN + OPENED


@pytest.mark.parametrize(
    ("template", "variables", "opened", "warned"),
    [
        (TURN, {}, False, []),
        (OFF, {}, False, []),
        (HYBRID, {"enable_thinking": False}, False, []),
        (LENIENT, {"enable_thinking": False}, False, []),
        (LENIENT, {"enable_thinking": True}, False, []),
        (HYBRID, {}, True, ["begins every reply inside <think>.*kwargs.enable_thinking=false"]),
        (HYBRID, {"enable_thinking": True}, True, ["begins every reply inside <think>"]),
        (LENIENT, {}, False, ["lets it reason.*kwargs.enable_thinking=false"]),
        (ALWAYS, {}, True, ["begins every reply inside <think>.*Instruct"]),
        (
            OFF,
            {"enable_thinkin": False},
            False,
            ["no variable 'enable_thinkin'.*did you mean 'enable_thinking'"],
        ),
    ],
)
def test_warnings_about_templates_that_reason(
    chat: ChatTokenizer, template: str, variables: dict[str, Any], opened: bool, warned: list[str]
) -> None:
    tokenizer = ChatTokenizer(chat.tokenizer, template, variables=variables)
    assert tokenizer.opens_reasoning is opened
    lines = tokenizer.warnings("m")
    assert len(lines) == len(warned)
    for line, words in zip(lines, warned, strict=True):
        assert re.search(words, line), line


def test_variables_reach_the_template(chat: ChatTokenizer) -> None:
    def rendered(variables: dict[str, Any]) -> str:
        turn = ChatTokenizer(chat.tokenizer, HYBRID, variables=variables).encode_prompt(Prompt("yes?"))
        text: str = chat.tokenizer.decode([*turn.prefix, *turn.suffix])
        return text

    assert rendered({}).endswith("yes?<|im_end|>assistant\n<think>\n")
    assert rendered({"enable_thinking": False}).endswith("<think>\n\n</think>\n\n")


def test_a_reply_without_its_reasoning(chat: ChatTokenizer) -> None:
    ids = chat.encode("Or a dog?\n</think>\n\nA cat.")
    reply = ChatTokenizer(chat.tokenizer, HYBRID).decode_reply(ids)
    assert (reply.text, reply.reasoning) == ("A cat.", "Or a dog?")
    assert reply.reasoning_tokens == len(chat.encode("Or a dog?"))
    assert ChatTokenizer(chat.tokenizer, HYBRID).decode_reply(chat.encode("Or a")) == (
        "",
        "Or a",
        len(chat.encode("Or a")),
    )
    assert ChatTokenizer(chat.tokenizer, TURN).decode_reply(chat.encode("A cat.")) == ("A cat.", "", 0)


def test_reasoning_tags_that_are_control_tokens_are_kept(chat: ChatTokenizer) -> None:
    """skip_special_tokens alone would merge the reasoning and the answer."""
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    open_, close = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    ids = [open_, *chat.encode("Or a dog?"), close, *chat.encode("A cat."), tokenizer.eos_token_id]
    assert ChatTokenizer(tokenizer).decode_reply(ids)[:2] == ("A cat.", "Or a dog?")


def test_a_tokenizer_without_a_template_is_refused_when_the_engine_opens(chat: ChatTokenizer) -> None:
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        ChatTokenizer(tokenizer).warnings("m")
