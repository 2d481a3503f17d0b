from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalecap.engines.base import Prompt
from scalecap.engines.chat import Chat, tile

transformers: Any = pytest.importorskip("transformers", reason='needs pip install "scalecap[cpu]"')


@pytest.fixture(scope="session")
def chat(tiny_model: Path) -> Chat:
    return Chat(transformers.AutoTokenizer.from_pretrained(tiny_model))


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
def test_tile(offsets: list[tuple[int, int]], length: int, spans: list[tuple[int, int, int]]) -> None:
    assert tile(offsets, length) == spans


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(max_size=60) | st.sampled_from(["<|im_end|>", "🦁<|image_pad|>é", "\ue000\ue001"]))
def test_spans_cover_any_text_once(chat: Chat, text: str) -> None:
    ids, spans = chat.spans(text)
    assert "".join(text[start:end] for start, end, _ in spans) == text
    assert sum(count for *_, count in spans) == len(ids)
    assert not set(ids) & set(chat.tokenizer.all_special_ids)


@pytest.mark.parametrize("system", ["You are a helpful assistant.", ""])
@pytest.mark.parametrize("parts", [True, False])
def test_ids_are_the_templates(chat: Chat, system: str, parts: bool) -> None:
    prompt = Prompt("\n Is it true?\n", system=system)
    messages = [{"role": "system", "content": system}] * bool(system) + [
        {"role": "user", "content": prompt.text}
    ]
    text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turn = Chat(chat.tokenizer, parts=parts).turn(prompt)
    assert turn.prefix + turn.rest == chat.tokenizer(text)["input_ids"]
    assert turn.prefix


def test_the_picture_is_in_the_prefix(chat: Chat) -> None:
    picture: Any = object()
    one, other = chat.turn(Prompt("Is it true?", picture)), chat.turn(Prompt("Is it a cat?", picture))
    assert one.prefix == other.prefix
    assert chat.tokenizer.convert_tokens_to_ids("<|image_pad|>") in one.prefix


def test_a_template_beside_the_tokenizer_holds(chat: Chat) -> None:
    short = Chat(chat.tokenizer, "{{ messages[-1].content[-1].text }}<|im_end|>")
    turn = short.turn(Prompt("yes"))
    assert turn.prefix + turn.rest == [*chat.encode("yes"), 299]
