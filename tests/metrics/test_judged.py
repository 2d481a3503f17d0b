"""Metrics that a judge answers: capsbench, captionqa, qa, grounding."""

import re

import pytest

from scalecap.engines.base import Choose, Chosen, Generate, Generated
from scalecap.metrics import records
from scalecap.metrics.capsbench import Capsbench
from scalecap.metrics.captionqa import CANNOT, Captionqa, is_yes_no
from scalecap.metrics.grounding import Grounding
from scalecap.metrics.qa import Qa, extract, plain
from scalecap.stages.choices import index_of
from scalecap.text.templates import Template

ABOUT = Template("{{ caption }} | {{ question }}")
PICK = Template("{{ caption }} | {{ question }}\n{{ options }}")
QUESTIONS = [
    {"question": "Is there a dog?", "answer": "Yes", "category": "entity"},
    {"question": "Is the dog red?", "answer": "no", "category": "color"},
    {"question": "Is there a hat?", "answer": "no", "category": "entity"},
]


def reader(request):
    """Answers from the words of the caption alone."""
    caption, question = request.prompt.text.split(" | ")
    word = question.split()[-1].rstrip("?")
    if word in caption:
        return "yes"
    return "no" if "brown" in caption and word == "red" else "n/a"


async def test_capsbench_counts_answers_by_category_for_each_caption(recording_client):
    recorder = recording_client(reader)
    captions = {"long": "a brown dog", "short": ["a", "dog"], "none": None}
    measured, answers = await Capsbench(prompt=ABOUT)(recorder.client, captions=captions, questions=QUESTIONS)
    assert measured == {
        "long": {
            "accuracy": {"count": 2, "of": 3},
            "unanswered": {"count": 1, "of": 3},
            "words": 3,
            "category": {"color": {"count": 1, "of": 1}, "entity": {"count": 1, "of": 2}},
        },
        "short": {
            "accuracy": {"count": 1, "of": 3},
            "unanswered": {"count": 2, "of": 3},
            "words": 2,
            "category": {"color": {"count": 0, "of": 1}, "entity": {"count": 1, "of": 2}},
        },
    }
    first = {"caption": "long", "question": "Is there a dog?", "answer": "yes", "p": 1.0, "right": True}
    assert answers[0] == first | {"mass": 1.0}
    assert len(answers) == 6
    assert all(isinstance(r, Choose) and r.prompt.image is None for r in recorder.requests)
    assert recorder.requests[0].options == ("yes", "no", "n/a")


async def test_a_judge_that_names_no_option_has_answered_nothing(recording_client):
    def silent(request):
        return Chosen(tuple(0.0 for _ in request.options), mass=0.0)

    measured, answers = await Capsbench(prompt=ABOUT)(
        recording_client(silent).client, captions={"a": "b"}, questions=QUESTIONS
    )
    assert measured["a"]["unanswered"] == {"count": 3, "of": 3}
    assert {(each["answer"], each["p"], each["mass"]) for each in answers} == {("", None, 0.0)}
    measured, answers = await Captionqa(prompt=PICK)(
        recording_client(silent).client, captions={"a": "b"}, questions=CHOICES
    )
    assert measured["a"]["score"] == {"count": 0, "of": 1}
    assert answers[0]["answer"] == ""
    measured, _ = await Qa(prompt=PICK)(
        recording_client(silent).client,
        captions={"a": "b"},
        question="How many?",
        options=["one", "two"],
        answer="A",
    )
    assert measured["a"]["accuracy"] == 0


async def test_captions_are_cut_to_equal_length(recording_client):
    recorder = recording_client(lambda request: "n/a")
    captions = {"a": "one two three four"}
    measured, _ = await Capsbench(prompt=ABOUT, words=2)(
        recorder.client, captions=captions, questions=QUESTIONS
    )
    assert recorder.texts[0] == "one two | Is there a dog?"
    assert measured["a"]["words"] == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "expected a list of records"),
        (None, "expected a list of records"),
        ([{"question": "?"}], "record 0 lacks answer, category"),
        ({"question": ["?"], "answer": []}, "lists of equal length, got {'question': 1, 'answer': 0}"),
        (["text"], "record 0 lacks question, answer, category"),
    ],
)
async def test_malformed_questions_are_refused(recording_client, value, message):
    with pytest.raises(ValueError, match=message):
        await Capsbench(prompt=ABOUT)(recording_client(reader).client, captions={"a": "b"}, questions=value)


def test_records_as_a_mapping_of_lists():
    assert records({"text": ["a", "b"], "label": [1, 0]}, "text", "label") == [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
    ]


def taking(option):
    """Takes the letter of the line that holds `option`."""

    def script(request):
        letter = re.search(rf"^([A-Z])\. {re.escape(option)}$", request.prompt.text, re.M)
        return Chosen(tuple(float(each == letter[1]) for each in request.options))

    return script


CHOICES = [
    {
        "question": "What colour is the cat?",
        "choices": ["black", "white", "tan"],
        "answer": "white",
        "category": ["Attribute"],
    }
]


@pytest.mark.parametrize(
    ("option", "score", "right"), [("white", 1.0, 1), ("black", 0.0, 0), (CANNOT, 1 / 3 + 0.05, 0)]
)
async def test_captionqa_scores_as_its_authors_do(recording_client, option, score, right):
    recorder = recording_client(taking(option))
    measured, answers = await Captionqa(prompt=PICK)(
        recorder.client, captions={"a": "a white cat"}, questions=CHOICES
    )
    assert measured["a"]["score"] == {"count": pytest.approx(score), "of": 1}
    assert measured["a"]["accuracy"] == {"count": right, "of": 1}
    assert measured["a"]["unanswered"] == {"count": int(option == CANNOT), "of": 1}
    assert measured["a"]["category"] == {"Attribute": {"count": right, "of": 1}}
    assert answers[0]["answer"] == option
    assert recorder.requests[0].options == tuple("ABCD")


async def test_captionqa_lists_the_options_in_the_same_order_for_every_caption(recording_client):
    recorder = recording_client(taking("tan"))
    await Captionqa(prompt=PICK)(recorder.client, captions={"a": "x", "b": "y"}, questions=CHOICES)
    lists = [text.split("\n", 1)[1] for text in recorder.texts]
    assert lists[0] == lists[1]


@pytest.mark.parametrize(
    ("question", "options", "yes_no"),
    [
        ("Is it red?", ["red", "blue"], True),
        ("Which one?", ["Yes", "No"], True),
        ("Which one?", ["now", "yesterday"], False),
        ("Isolated?", ["a", "b"], False),
    ],
)
def test_yes_no_questions_get_no_option_to_abstain(question, options, yes_no):
    assert is_yes_no(question, options) is yes_no


async def test_qa_among_options(recording_client):
    client = recording_client(taking("two")).client
    measured, answers = await Qa(prompt=PICK)(
        client, captions={"a": "b c"}, question="How many?", options=["one", "two"], answer="B"
    )
    assert measured == {"a": {"accuracy": 1, "words": 2}}
    assert answers == [
        {"caption": "a", "question": "How many?", "answer": "two", "p": 1.0, "right": True, "mass": 1.0}
    ]
    measured, _ = await Qa(prompt=PICK)(
        client, captions={"a": "b"}, question="How many?", options={"A": "one", "B": "two"}, answer="one"
    )
    assert measured["a"]["accuracy"] == 0
    lettered = {"C": None, "B": "two", "A": "one"}
    measured, _ = await Qa(prompt=PICK)(
        client, captions={"a": "b"}, question="How many?", options=lettered, answer="B"
    )
    assert measured["a"]["accuracy"] == 1


async def test_more_options_than_letters_are_refused(recording_client):
    with pytest.raises(ValueError, match="expected at most 26 options, got 27"):
        await Qa(prompt=PICK)(
            recording_client(reader).client,
            captions={"a": "b"},
            question="?",
            options=list(map(str, range(27))),
            answer=0,
        )


async def test_qa_without_options(recording_client):
    recorder = recording_client(lambda request: "I think so.\nThe answer is: the Red Car.")
    measured, answers = await Qa(prompt=PICK)(
        recorder.client, captions={"a": "b"}, question="Which?", answer=["a red car", "car"]
    )
    assert measured["a"]["accuracy"] == 1
    assert answers[0]["answer"] == "the Red Car"
    assert isinstance(recorder.requests[0], Generate)
    assert recorder.requests[0].sampling.temperature == 0


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("Paris.", "Paris"),
        ("Answer: 42", "42"),
        ("It has four legs.\n\n**Answer**: 4", "4"),
        ("\n\n 3.5 m\nbecause", "3.5 m"),
        ("", ""),
        ("answer is", ""),
        ("The answer isn't told.", "The answer isn't told"),
    ],
)
def test_the_answer_in_a_reply(reply, answer):
    assert extract(reply) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The Cat", "cat", True),
        ('"STOP"', "stop", True),
        ("50%", "50", False),
        ("3.5", "35", False),
        ("a b", "a  B.", True),
        ("A.", "a", True),
        ("A", "the", False),
        ("", "A", False),
        ("?", "", False),
    ],
)
def test_answers_are_compared_plainly(one, other, same):
    assert (plain(one) == plain(other)) is same


@pytest.mark.parametrize(
    ("answer", "index"), [("red", 0), ("B", 1), ("(b)", 1), (1, 1), (" Blue ", 1), ("b.", 1)]
)
def test_the_right_option(answer, index):
    assert index_of(answer, ["red", "blue"]) == index


@pytest.mark.parametrize(
    ("answer", "options", "index"),
    [
        (2, [1, 2, 3], 1),
        (3, [2, 3, 4], 1),
        ("3", [2, 3, 4], 1),
        ("C", [2, 3, 4], 2),
        (True, [True, False], 0),
        (True, ["yes", "no"], 0),
        (False, ["yes", "no"], 1),
    ],
)
def test_a_number_or_truth_is_that_of_an_option_where_options_are(answer, options, index):
    assert index_of(answer, options) == index


async def test_capsbench_takes_true_and_false_as_yes_and_no(recording_client):
    questions = [each | {"answer": each["answer"].lower() == "yes"} for each in QUESTIONS]
    recorder = recording_client(reader)
    captions = {"long": "a brown dog"}
    measured, _ = await Capsbench(prompt=ABOUT)(recorder.client, captions=captions, questions=questions)
    same, _ = await Capsbench(prompt=ABOUT)(recorder.client, captions=captions, questions=QUESTIONS)
    assert measured == same
    assert measured["long"]["accuracy"]["count"] > 0


@pytest.mark.parametrize(
    ("answer", "reply"),
    [(True, "Yes."), (False, "no"), (2.0, "2"), (2, "2"), (2.5, "2.5"), ([3.0, "x"], "3")],
)
async def test_qa_takes_answers_that_are_no_texts(recording_client, answer, reply):
    recorder = recording_client(lambda _: reply)
    measured, _ = await Qa(prompt=PICK)(recorder.client, captions={"a": "x"}, question="?", answer=answer)
    assert measured["a"]["accuracy"] == 1


@pytest.mark.parametrize("answer", [None, []])
async def test_qa_needs_an_answer(recording_client, answer):
    client = recording_client(lambda _: "None").client
    with pytest.raises(ValueError, match="the row has no right answer"):
        await Qa(prompt=PICK)(client, captions={"a": "x"}, question="?", answer=answer)


async def test_qa_with_numbers_by_letter(recording_client):
    recorder = recording_client(lambda _: "B")
    stage, options = Qa(prompt=PICK), {"A": 1, "B": 2, "C": 3, "D": None}
    measured, _ = await stage(
        recorder.client, captions={"a": "two dogs"}, question="How many?", answer="B", options=options
    )
    assert measured["a"]["accuracy"] == 1


@pytest.mark.parametrize("answer", ["green", "C", 2, -1, "", None, 1.0, ["red"]])
def test_an_answer_that_is_not_an_option(answer):
    with pytest.raises(ValueError, match="invalid answer"):
        index_of(answer, ["red", "blue"])


async def test_claims_keep_their_numbers_and_lists_of_texts_their_items(recording_client, image):
    claims = "1. A dog runs.\n- 3 cats sleep.\n3.5 m tall"
    recorder = recording_client(lambda request: 0.9 if "True?" in request.prompt.text else claims)
    stage = Grounding(prompt=Template("True? {{ text }}"), claims=Template("Split: {{ text }}"), words=99)
    _, answers = await stage(recorder.client, captions={"a": ["A sign", "A cat"]}, image=image)
    assert recorder.texts[:2] == ["Split: A sign", "Split: A cat"]
    assert [each["text"] for each in answers] == ["A dog runs.", "3 cats sleep.", "3.5 m tall"]


async def test_grounding_counts_sentences(recording_client, image):
    recorder = recording_client(lambda request: 0.2 if "cat" in request.prompt.text else 0.8)
    stage = Grounding(prompt=Template("True? {{ text }}"))
    measured, answers = await stage(
        recorder.client, captions={"a": "A dog. A cat.", "b": ["A dog."], "c": ""}, image=image
    )
    assert measured["a"] == {
        "supported": {"count": 1, "of": 2},
        "p_yes": {"count": pytest.approx(1.0), "of": 2},
        "unanswered": {"count": 0, "of": 2},
        "statements": 2,
        "words": 4,
    }
    assert measured["b"]["supported"] == {"count": 1, "of": 1}
    assert measured["c"]["supported"] == {"count": 0, "of": 0}
    assert answers[1] == {"caption": "a", "text": "A cat.", "p_yes": 0.2, "mass": 1.0}
    assert all(request.prompt.image is image for request in recorder.requests)


async def test_a_sentence_without_an_answer_is_not_supported(recording_client, image):
    recorder = recording_client(
        lambda request: Chosen((0.9, 0.1), 0.01 if "cat" in request.prompt.text else 0.9), 0.1
    )
    measured, answers = await Grounding(prompt=Template("True? {{ text }}"))(
        recorder.client, captions={"a": "A dog. A cat."}, image=image
    )
    assert measured["a"]["supported"] == {"count": 1, "of": 2}
    assert measured["a"]["p_yes"] == {"count": 0.9, "of": 1}
    assert measured["a"]["unanswered"] == {"count": 1, "of": 2}
    assert [(each["p_yes"], each["mass"]) for each in answers] == [(0.9, 0.9), (None, 0.01)]
    assert recorder.flags == ["unanswered"]


async def test_claims_are_checked_in_place_of_sentences(recording_client, image):
    def script(request):
        if isinstance(request, Generate):
            return "- There is a dog.\n2. The dog is red.\n" if "dog" in request.prompt.text else " \n"
        return 0.1 if "red" in request.prompt.text else 0.9

    recorder = recording_client(script)
    stage = Grounding(prompt=Template("True? {{ text }}"), claims=Template("Split: {{ text }}"))
    measured, answers = await stage(recorder.client, captions={"a": "A red dog. Snow."}, image=image)
    assert [each["text"] for each in answers] == ["There is a dog.", "The dog is red.", "Snow."]
    assert measured["a"]["supported"] == {"count": 2, "of": 3}
    assert [r.prompt.image for r in recorder.requests if isinstance(r, Generate)] == [None, None]


async def test_a_caption_whose_sentence_the_judge_refuses_to_split_is_not_measured(recording_client, image):
    def script(request):
        if isinstance(request, Generate):
            return "I'm sorry, but I can't assist with that." if "gun" in request.prompt.text else "It runs."
        return 0.9

    recorder = recording_client(script)
    stage = Grounding(prompt=Template("True? {{ text }}"), claims=Template("Split: {{ text }}"))
    captions = {"a": "A dog. A gun.", "b": "A dog."}
    measured, answers = await stage(recorder.client, captions=captions, image=image)
    assert measured["a"] is None
    assert measured["b"]["supported"] == {"count": 1, "of": 1}
    assert [each["caption"] for each in answers] == ["b"]
    assert recorder.flags == ["refused"]


async def test_of_a_truncated_list_the_last_claim_is_left_out(recording_client, image):
    def script(request):
        if isinstance(request, Generate):
            return Generated("There is a dog.\nThe dog is wearing a", "length")
        return 0.9

    recorder = recording_client(script)
    stage = Grounding(prompt=Template("True? {{ text }}"), claims=Template("Split: {{ text }}"))
    _, answers = await stage(recorder.client, captions={"a": "A dog in a coat."}, image=image)
    assert [each["text"] for each in answers] == ["There is a dog."]
    assert recorder.flags == ["truncated"]
