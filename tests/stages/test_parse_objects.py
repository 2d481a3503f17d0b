import pytest

from scalecap.stages.parse_objects import parse_objects

REPLIES = [
    "Describe more details about the cat.\nDescribe more details about the Red Hat. Really.",
    "- Describe more details about A  Cat.\n* Describe more details about [the tree].\nNothing else.",
    "1. Describe more details about **an owl**\nDescribe more details about the position of the tree.",
    "",
    "I describe more details. Describe more details about .",
]


def test_each_object_once_in_order_then_the_positions():
    questions, about = parse_objects({"replies": REPLIES})
    names = ["the cat", "the Red Hat", "the tree", "an owl"]
    assert questions == [
        *(f"Describe more details about {name}." for name in names),
        *(f"Describe more details about the position of {name}." for name in names),
    ]
    assert [entry["object"] for entry in about] == names * 2
    assert [entry["sentence"] for entry in about] == [0, 0, 1, 2] * 2
    assert [entry["position"] for entry in about] == [False] * 4 + [True] * 4


def test_a_full_stop_within_a_name_does_not_end_it():
    reply = "Describe more details about the U.S. flag.\nDescribe more details about Dr. Lee. It is a man."
    _, about = parse_objects({"replies": [reply]})
    assert [entry["object"] for entry in about] == ["the U.S. flag", "Dr. Lee"] * 2


def test_objects_in_one_line_in_bold_and_with_brackets():
    reply = (
        "Describe more details about the **red** car. Describe more details about **the man** (on the left)."
    )
    _, about = parse_objects({"replies": [reply]})
    assert [entry["object"] for entry in about] == ["the red car", "the man (on the left)"] * 2


@pytest.mark.parametrize(("budget", "objects"), [(-1, 0), (0, 0), (1, 1), (3, 3), (4, 4), (9, 4), (None, 4)])
def test_the_budget_is_the_most_objects(budget, objects):
    questions, about = parse_objects({"replies": REPLIES}, budget=budget)
    assert len(questions) == len(about) == 2 * objects


def test_a_reply_that_goes_on_to_another_sentence_ends_there():
    # SmolLM2-135M-Instruct, after the prompt's examples.
    reply = "Describe more details about the man.\nSentence:\nA chart\nDescribe more details about the chart."
    _, about = parse_objects({"replies": [reply]})
    assert [entry["object"] for entry in about] == ["the man", "the man"]


def test_replies_about_several_sentences_go_to_the_first_that_names_the_object():
    replies = {
        "each": [""],
        "joint": ["Describe more details about the dogs.", "Describe more details about a hat."],
    }
    sentences = ["It is sunny.", "A boy has a hat.", "There is one dog.", "The dog has a hat, too."]
    _, about = parse_objects(replies, sentences)
    assert [entry["sentence"] for entry in about] == [2, 1, 2, 1]
    assert (
        parse_objects({"joint": ["Describe more details about the sky."]}, sentences)[1][0]["sentence"] == 0
    )


@pytest.mark.parametrize(
    ("name", "place"),
    [("the bus", 1), ("buses", 1), ("a glass", 2), ("the dog", 3), ("two dogs", 3), ("the gas lamp", 0)],
)
def test_an_object_belongs_to_the_sentence_with_its_word_not_with_one_that_begins_alike(name, place):
    sentences = ["A building has a game and lamps.", "Buses stand there.", "Glasses.", "The dog's ball."]
    _, about = parse_objects({"a": [f"Describe more details about {name}."]}, sentences)
    assert [each["sentence"] for each in about] == [place, place]
