"""Replies as language models write them; those marked SmolLM2 are SmolLM2-135M-Instruct's own."""

import pytest

from scalecap.text.parsing import Unparsed, body, complete_sentences, json_value, lines

MAN = "The man wears a blue rain jacket and a grey helmet."


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", []),
        ("- a dog\n\n* a cat\n2) an owl\n• 3 mice", ["a dog", "a cat", "an owl", "3 mice"]),
        ("1. **Dog**: brown\n2. __Cat__\n3. a *small* owl", ["Dog: brown", "Cat", "a *small* owl"]),
        ("1、一只狗\n2.一只猫\n3）一只鸟\n3.5米高的墙", ["一只狗", "一只猫", "一只鸟", "3.5米高的墙"]),
        ("-5 °C is shown.\n+1\n-dog\n- 5 birds", ["-5 °C is shown.", "+1", "dog", "5 birds"]),
        ("**The dog** is brown.\n## Objects\ncat", ["The dog is brown.", "Objects", "cat"]),
        ("Sure! Here are the objects:\n\n- dog\n- cat", ["dog", "cat"]),
        ("Sure, here you go:\n```\ndog\ncat\n```", ["dog", "cat"]),
        ("Objects:\n---\ndog\n***\ncat", ["dog", "cat"]),
        ("None.", []),
        ("1. None\n2. a dog", ["a dog"]),
        ("**Objects:**\n- dog\n- cat", ["dog", "cat"]),
        ("## Objects:\n1.Dog\n2.Cat", ["Dog", "Cat"]),
        ("1. Dog:\nIt is brown.", ["Dog:", "It is brown."]),  # a heading of the list is not a preamble
        ("The dog:", ["The dog:"]),
        ("2 * 3 ** 4", ["2 * 3 ** 4"]),
        ("**1. Dog**: brown\n- **2.** Cat\n(3) owl\nd) fox", ["Dog: brown", "Cat", "owl", "fox"]),
        ("– dog\n— cat\n▪ owl\n(left) fox", ["dog", "cat", "owl", "(left) fox"]),
        # SmolLM2
        (
            "The man is wearing a blue jacket.\nThe man is riding a bike.\nThe bike is wet.\n"
            "The man is wearing a blue jacket.\nThe man is riding a bike.",
            ["The man is wearing a blue jacket.", "The man is riding a bike.", "The bike is wet."],
        ),
    ],
)
def test_lines(reply: str, expected: list[str]) -> None:
    assert lines(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", ""),
        ("A dog runs", "A dog runs"),
        ("A dog runs. It is br", "A dog runs."),
        ("A dog runs. It is brown.", "A dog runs. It is brown."),
        ("A dog. \n\nA cat.\nA", "A dog. \n\nA cat."),
        ("一只狗。它是", "一只狗。"),
        ("red hat, blue coat, gre", "red hat, blue coat, gre"),
        ("- red hat\n- blue coat\n- gre", "- red hat\n- blue coat"),
        ("1. A dog.\n2. A cat\n3. A", "1. A dog.\n2. A cat"),
        ("dog\ncat\ndog\ncat\ndo", "dog\ncat"),
        # SmolLM2
        (
            "The cake is at the top right. The two crabs are at the top. The cake is at the top left. "
            "The two crabs are at the top. The two crabs are at the top. The two crabs are at the",
            "The cake is at the top right. The two crabs are at the top. The cake is at the top left.",
        ),
        (f"{MAN}\n{MAN}\n{MAN}\nThe man wears a blue rain", MAN),
    ],
)
def test_a_cut_reply_ends_with_its_last_new_sentence(reply: str, expected: str) -> None:
    assert complete_sentences(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (" A dog.\nA cat. ", " A dog.\nA cat. "),
        ("Sure! Here is the description:\n\nA dog.\nA cat.", "A dog.\nA cat."),
        ("Here it is:\n\n---\n\nA dog.\n\n---\n\nShall I add:", "A dog."),
        ("**Caption:**\n```\nA dog.\n```", "A dog."),
        ("---", "---"),
        ("Here is one:", "Here is one:"),
        ("Here is one:\n\n", "Here is one:\n\n"),
        ("- Dog:\n  brown", "- Dog:\n  brown"),
        ("A sign reads:\nStop here:\nnow", "Stop here:\nnow"),
        ("There is a tractor.\n\nYou may want to add:", "There is a tractor."),  # SmolLM2
    ],
)
def test_a_line_that_announces_a_text_is_not_part_of_it(reply: str, expected: str) -> None:
    assert body(reply) == expected


@pytest.mark.parametrize(
    "reply",
    [
        '{"a": "```"}',
        '```json\n{"a": "```"}\n```',
        'Sure:\n```\n{"a": "```"}\n```\nThat is all.',
        '```JSON\r\n{"a": "```"}\r\n```',
        '```json {"a": "```"} ```',
        '```json\n{"a": "```"}\n```\n',
    ],
)
def test_json_in_a_block_of_code(reply: str) -> None:
    assert json_value(reply) == {"a": "```"}
    assert json_value(reply.replace('"```"', "1")) == {"a": 1}
    assert json_value('```json\n{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("reply", ["", 'Sure! {"a": 1}', "```\n1\n```\n```\n2\n```", '```json\n{"a"', "NaN"])
def test_nothing_is_guessed(reply: str) -> None:
    with pytest.raises(Unparsed):
        json_value(reply)
