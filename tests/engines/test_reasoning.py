from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.engines.reasoning import find_switch, opens_reasoning, split_reasoning

PLAIN = st.text(max_size=40).filter(lambda text: "think>" not in text)


@pytest.mark.parametrize(
    ("reply", "opened", "text", "reasoning"),
    [
        ("A cat.", False, "A cat.", ""),
        ("\n A cat. \n", False, "\n A cat. \n", ""),
        ("<think>A cat?</think>A cat.", False, "A cat.", "A cat?"),
        ("\n<think>\nA cat?\n</think>\n\nA cat.\n", False, "A cat.\n", "A cat?"),
        ("<think>\n\n</think>\n\nA cat.", False, "A cat.", ""),
        ("<think>one</think>\n<think>two</think>A cat.", False, "A cat.", "one\n\ntwo"),
        ("<think>A cat? Or", False, "", "A cat? Or"),
        ("Or a dog?</think>\nA cat.", False, "A cat.", "Or a dog?"),
        ("Or a dog?\n</think>\n\nA cat.", True, "A cat.", "Or a dog?"),
        ("Or a dog? Or", True, "", "Or a dog? Or"),
        ("<think>Or a dog?</think>A cat.", True, "A cat.", "Or a dog?"),
        ("</think>A cat.", True, "A cat.", ""),
        ("", False, "", ""),
        ("", True, "", ""),
        ("A sign says <think>different</think>.", False, "A sign says <think>different</think>.", ""),
    ],
)
def test_reasoning_is_split_from_the_answer(reply: str, opened: bool, text: str, reasoning: str) -> None:
    assert split_reasoning(reply, opened=opened) == (text, reasoning)


@given(thoughts=st.lists(PLAIN, max_size=3), answer=PLAIN)
def test_no_reasoning_is_left_in_the_answer(thoughts: list[str], answer: str) -> None:
    reply = "".join(f"<think>{thought}</think>" for thought in thoughts) + answer
    text, reasoning = split_reasoning(reply)
    assert text == (answer.lstrip() if thoughts else answer)
    assert reasoning == "\n\n".join(thought.strip() for thought in thoughts if thought.strip())
    if thoughts:  # the template had written the beginning
        assert split_reasoning(reply.removeprefix("<think>"), opened=True) == (text, reasoning)


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("Say.<|im_start|>assistant\n<think>\n", True),
        ("Say.<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Think between <think> and </think>.<|im_start|>assistant\n", False),
    ],
)
def test_a_prompt_that_opens_the_reasoning(prompt: str, opens: bool) -> None:
    assert opens_reasoning(prompt) is opens


@pytest.mark.parametrize(
    ("variable", "default", "off", "switch"),
    [
        ("enable_thinking", "<think>", "<think></think>", "enable_thinking"),
        ("enable_thinking", "", "<think></think>", "enable_thinking"),
        ("thinking", "<think>", "</think>", "thinking"),
        ("enable_thinking", "<think></think>", "<think></think>", None),
        ("enable_thinking", "<think>", "Be brief. <think>", None),
        ("tools", "<think>", "", None),
    ],
    ids=["opens", "lets", "by another name", "is off", "no use", "none"],
)
def test_the_switch_is_found_by_what_it_changes(
    variable: str, default: str, off: str, switch: str | None
) -> None:
    def render(more: Mapping[str, object]) -> str:
        return off if more == {variable: False} else default

    assert find_switch(render, f"{{% if {variable} %}}") == switch
