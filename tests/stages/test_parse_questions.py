import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.stages.parse_questions import parse_questions

DOG = "Describe more details about the dog."
DOG_AT = "Describe more details about the position of the dog."
TREE = "Describe more details about the tree."
TREE_AT = "Describe more details about the position of the tree."


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("", []),
        ("nothing to ask", []),
        (DOG, [DOG, DOG_AT]),
        (f"{DOG}\n\n{TREE}", [DOG, TREE, DOG_AT, TREE_AT]),
        (f"{DOG}\n{TREE}\n{DOG}", [DOG, TREE, DOG_AT, TREE_AT]),
        (f"  - 1. {DOG} It has a collar.", [DOG, DOG_AT]),
        ("Describe more details about the dog", [DOG[:-1], DOG_AT[:-1]]),
        ("describe more details about the dog.", []),
        ("Describe it. Describe more details about the dog.", ["Describe it.", "Describe it."]),
        (f"{DOG}\x0b{TREE}", [DOG, DOG_AT]),
        (
            "- Describe more details about **the dog**.\n2. Describe more details about [the tree].",
            [DOG, TREE, DOG_AT, TREE_AT],
        ),
        # SmolLM2-135M-Instruct, which goes on to another sentence as the prompt's examples do.
        (f"{DOG}\nSentence:\nA tree stands there\nInstructions:\n{TREE}", [DOG, DOG_AT]),
        (f"{DOG}\n**Sentence: A tree**\n{TREE}", [DOG, DOG_AT]),
        (f"Sentence:\nA dog\nInstructions:\n{DOG}\nSentence:\nA tree\nInstructions:\n{TREE}", [DOG, DOG_AT]),
    ],
)
def test_rule(text, questions):
    assert parse_questions(text) == questions


@pytest.mark.parametrize(
    ("most", "questions"), [(1, [DOG, DOG_AT]), (2, [DOG, TREE, DOG_AT, TREE_AT]), (0, []), (-1, [])]
)
def test_max_questions_counts_objects(most, questions):
    assert parse_questions(f"{DOG}\n{DOG}\n{TREE}", max_questions=most) == questions


def test_twenty_by_default():
    text = "\n".join(f"Describe more details about the dog {n}." for n in range(30))
    questions = parse_questions(text)
    assert len(questions) == 40
    assert questions[19] == "Describe more details about the dog 19."
    assert questions[20] == "Describe more details about the position of the dog 0."


@given(
    lines=st.lists(st.sampled_from([DOG, TREE, "x. ", "Describe", ".", "- "]) | st.text(max_size=9)),
    most=st.integers(0, 3),
)
def test_properties(lines, most):
    questions = parse_questions("\n".join(lines), max_questions=most)
    half = len(questions) // 2
    assert len(questions) == 2 * half <= 2 * most
    assert len(set(questions[:half])) == half
    assert all(q.startswith("Describe") and "." not in q[:-1] for q in questions)
