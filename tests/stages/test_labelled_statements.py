"""Labels in columns of the data: each schema, and one message for each way in which they don't fit."""

import pytest
from omegaconf import OmegaConf

from scalecap.interpreter.pipeline import Pipeline, PipelineError
from scalecap.stages.labelled_statements import LabelledStatements
from scalecap.text.templates import Template

ANSWERS = {"right": ["yes", 1, "correct"], "wrong": ["no", 0, "incorrect"], "unsure": ["unknown"]}


async def read(columns, **settings):
    return await LabelledStatements(**{**ANSWERS, **settings})(None, columns=columns)


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"text": "A dog.", "label": "Correct"}, {"label": "label"}, [("A dog.", "yes")]),
        ({"text": "A dog.", "label": 0.0}, {"label": "label"}, [("A dog.", "no")]),
        (
            {"text": ["A dog.", "A cat.", "A cow."], "label": [1, "No", "UNKNOWN "]},
            {"label": "label"},
            [("A dog.", "yes"), ("A cat.", "no"), ("A cow.", "unsure")],
        ),
        (
            {"text": [{"text": "A dog.", "label": "yes"}, {"text": "A cat.", "label": 0}]},
            {},
            [("A dog.", "yes"), ("A cat.", "no")],
        ),
        ({"text": [], "label": []}, {"label": "label"}, []),
        ({"text": "A dog.", "label": None}, {"label": "label", "unsure": [None]}, [("A dog.", "unsure")]),
        (
            {"text": "A dog.", "label": True},
            {"label": "label", "right": ["false"], "wrong": ["true"]},
            [("A dog.", "no")],
        ),
    ],
)
async def test_columns_of_labels(columns, settings, expected):
    texts, verdicts = await read(columns, text="text", **settings)
    assert list(zip(texts, verdicts, strict=True)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "A dog runs. A <Hallucination>cat</Hallucination> sleeps. A cow.",
            [("A dog runs.", "yes"), ("A cat sleeps.", "no"), ("A cow.", "yes")],
        ),
        (
            "<HALLUCINATION>A dog. A</HALLUCINATION> cat. It is red.",
            [("A dog.", "no"), ("A cat.", "no"), ("It is red.", "yes")],
        ),
        (
            "A dog.<hallucination> </hallucination>A cat.",
            [("A dog.", "yes"), ("A cat.", "yes")],
        ),  # white space is not a word
        ("It is red. It is <Hallucination>red</Hallucination>.", [("It is red.", "no")]),
        ("", []),
    ],
)
async def test_tags_in_the_text(text, expected):
    texts, verdicts = await read({"caption": text}, text="caption", tags="hallucination")
    assert list(zip(texts, verdicts, strict=True)) == expected


async def test_a_sentence_is_wrong_when_any_of_its_words_is():
    words = ["A", "red", "dog", "A", "black", "cat", "It", "sleeps", "."]
    columns = {
        "caption": "A red dog. A black cat. It sleeps.",
        "words": words,
        "hallucinated": [0, 0, 0, 0, 1, 0, 0, "unknown", 0],
    }
    columns_of = {"text": "caption", "tokens": "words", "label": "hallucinated"}
    texts, verdicts = await read(columns, **columns_of, right=[0], wrong=[1])
    assert texts == ["A red dog.", "A black cat.", "It sleeps."]
    assert verdicts == ["yes", "no", "unsure"]


async def test_a_question_becomes_a_statement():
    texts, verdicts = await read(
        {"question": "Is there a dog in the image?", "answer": "no"},
        text="question",
        label="answer",
        statement=Template("{{ text | replace('Is there', 'There is', 1) | replace('?', '.') }}"),
    )
    assert (texts, verdicts) == (["There is a dog in the image."], ["no"])


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            {"text": "A dog.", "label": "maybe"},
            {},
            "column 'label' has the unknown label 'maybe': say what it means with labels.right=",
        ),
        (
            {"text": "A dog.", "label": None},
            {},
            "column 'label' has no label: say what it means with labels.right=, labels.wrong= or"
            " labels.unsure= (e.g. labels.unsure=[unsure,unknown,null]), or leave the row out",
        ),
        (
            {"text": ["A dog."], "label": ["yes", "no"]},
            {},
            "column 'label' has 2 labels for the 1 items of column 'text'",
        ),
        (
            {"text": ["A dog."], "label": "yes"},
            {},
            "column 'label': expected a list with one label per statement, got 'yes'",
        ),
        ({"text": 7, "label": "yes"}, {}, "column 'text': expected a text or a list of texts, got 7"),
        ({"text": None, "label": "yes"}, {}, "column 'text': expected a text or a list of texts, got None"),
        (
            {"text": ["A dog.", 7], "label": ["yes", "yes"]},
            {},
            "column 'text', item 1: expected a text, got 7",
        ),
        (
            {"text": ["A dog."], "label": "yes"},
            {"label": None},
            "column 'text', item 0: expected {text, label}, got 'A dog.'; name the column of labels with"
            " labels.label=COLUMN",
        ),
        (
            {"text": "A dog."},
            {"label": None},
            "column 'text': expected a list of {text, label}, or labels.label=COLUMN",
        ),
        ({"text": ["A dog.", " "], "label": ["yes", "no"]}, {}, "column 'text' has an empty statement"),
        (
            {"text": ["A dog.", "A dog."], "label": ["yes", "no"]},
            {},
            "a statement twice, labelled yes and no: 'A dog.'",
        ),
        (
            {"text": "A </x>dog."},
            {"label": None, "tags": "x"},
            "</x> at character 2 is closed without being opened",
        ),
        ({"text": "A <x>dog <x>"}, {"label": None, "tags": "x"}, "<x> at character 9 is opened twice"),
        ({"text": "A <x>dog"}, {"label": None, "tags": "x"}, "column 'text': a tag is not closed"),
        ({"text": ["A"]}, {"label": None, "tags": "x"}, "column 'text': expected a text, got ['A']"),
        (
            {"text": "A dog.", "words": ["A", "cat"], "label": [1, 1]},
            {"tokens": "words"},
            "column 'words', item 1: 'cat' is not the next word in column 'text'",
        ),
        (
            {"text": "A dog.", "words": ["A"], "label": [1, 1]},
            {"tokens": "words"},
            "column 'label' has 2 labels for the 1 items of column 'words'",
        ),
        (
            {"text": "A dog.", "words": "A dog", "label": [1]},
            {"tokens": "words"},
            "column 'words': expected a list of words",
        ),
    ],
)
async def test_what_does_not_fit_names_the_column_and_the_fix(columns, settings, message):
    with pytest.raises(ValueError, match="column") as error:
        await read(columns, **{"text": "text", "label": "label", **settings})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("tags: x, label: label", "tags says where the text is wrong: leave label and tokens out"),
        ("tokens: words", "tokens needs label"),
        (
            "label: label, right: [1], wrong: [true, 1.0]",
            "the label '1' is in two of right, wrong and unsure: give both lists",
        ),
        ("label: label, statement: '{{ question }}'", "statement: "),
    ],
)
def test_incompatible_settings_are_refused_by_the_check(settings, message):
    step = OmegaConf.to_container(
        OmegaConf.create(f"{{stage: labelled_statements, columns: [text], text: text, {settings}}}")
    )
    with pytest.raises(PipelineError, match="labelled: ") as error:
        Pipeline.build({"labelled": step}, {"text": "any", "label": "any"})
    assert message in str(error.value)
