"""Hostile and unforeseen texts, through everything that reads and keeps texts."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from scalecap.data.sources import json_safe
from scalecap.engines.base import Choose, Generate, Generated, Image, Prompt, Sampling, Score
from scalecap.interpreter.cache import _decode, _encode, key
from scalecap.interpreter.dispatch import is_looping, seed
from scalecap.rows import Row
from scalecap.run.journal import Journal
from scalecap.stages.parse_questions import parse_questions
from scalecap.stages.split_sentences import split_sentences
from scalecap.text.templates import Template

BAD = [
    "\0",
    "\ud800",
    "\udfff",
    "\u202e",
    "\u2066",
    "<|im_end|>",
    "<|im_start|>system",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "</script><script>",
    "../../etc/passwd",
    "$(reboot)",
    "\r\n",
    "\x85",
    "\u2028",
    ". ",
    "。",
    '"',
    "\\",
    "yes",
]
texts = st.lists(st.sampled_from(BAD) | st.characters(codec=None) | st.text(max_size=9)).map("".join)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
IMAGE = Image("abc", Pillow.new("RGB", (1, 1)))


@given(text=texts, other=texts)
def test_a_key_stands_for_one_request(text: str, other: str):
    made = {
        (kind, system, content, number): key("engine", kind(Prompt(content, IMAGE, system), *rest))
        for kind, rest, number in (
            (Generate, (Sampling(), 1), 0),
            (Generate, (Sampling(), 2), 1),
            (Choose, ((text, other),), 2),
            (Score, (text,), 3),
        )
        for system, content in {(text, other), (other, text), (text + other, ""), ("", text + other)}
    }
    assert len(set(made.values())) == len(made)
    assert 0 <= seed(0, "step", Prompt(text, IMAGE)) < 2**31


@given(text=texts)
def test_a_kept_reply_is_the_reply(text: str):
    # Two halves of a character side by side are that character, in JSON as in UTF-16.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    reply = Generated(text, "stop")
    assert _decode("k", _encode("k", reply)) == reply
    assert _decode("l", _encode("k", reply)) is None


@given(text=texts)
def test_stages_that_read_a_reply_take_anything(text: str):
    for rule in ("default", "seed"):
        pieces = split_sentences(text, rule=rule)
        assert all(piece in text and piece.strip() == piece for piece in pieces)
    assert all(question.startswith("Describe") for question in parse_questions(text))
    is_looping(text)


@pytest.mark.parametrize("chunk", ["Dr. ", "J. ", "a. ", "...", "!? ", '." ', "。」", "a", " ", "1. ", "\n"])
def test_a_line_of_a_megabyte_is_read(chunk: str):
    text = chunk * (2**20 // len(chunk))
    for rule in ("default", "seed"):
        assert len("".join(split_sentences(text, rule=rule))) <= len(text)
    parse_questions("Describe more details about " + text)
    is_looping(text)


@given(text=texts)
def test_a_text_in_a_prompt_stays_a_text(text: str):
    assert Template("Is it true? {{ text }}!").render(text=text) == f"Is it true? {text}!"


@settings(max_examples=60)
@given(columns=st.dictionaries(texts, values, max_size=4), junk=st.lists(st.binary(max_size=40)))
def test_the_journal_keeps_anything_and_survives_anything(columns: dict[str, Any], junk: list[bytes]):
    record = {"index": 3, "input": columns, "columns": {"c": columns}, "flags": {}, "error": None}
    row = Row(3, columns, lambda: pytest.fail("opened"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Journal(folder, {"seed": 0}) as journal:
            journal.append(record)
            assert journal.state(row) == "done"
        lines = [each.replace(b"\n", b"") for each in junk]
        lines += [b"null", b"[]", b'{"index": -1}', b'{"index": "3", "input": {}}', b"[" * 5000]
        with (folder / "journal.jsonl").open("ab") as file:
            file.writelines(line + b"\n" for line in lines)
            file.write(b'{"index": 4, "inp')  # torn
        with Journal(folder, {"seed": 0}) as journal:
            assert list(journal.entries) == [3]
            assert journal.state(row) == "done"
            (kept,) = journal.records([3])
            assert kept == json.loads(json.dumps(json_safe(record)))
            journal.append(record | {"index": 4})
        with Journal(folder, {"seed": 0}) as journal:
            assert list(journal.entries) == [3, 4]
            assert journal.state(replace(row, stamp="new")) == "done"
