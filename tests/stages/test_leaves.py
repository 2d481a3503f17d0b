from typing import Any

import pytest

from scalecap.interpreter.pipeline import Pipeline, PipelineError
from scalecap.stages.checked_structure import checked_structure
from scalecap.stages.leaves import Leaves

STATEMENTS = {
    "setting": "The setting is {{ value }}.",
    "objects.name": "There is {{ value }}.",
    "objects.count": "There are {{ value }} {{ name }}.",
    "objects.attributes": "The {{ name }} is {{ value }}.",
    "objects.place": "The {{ name }}, all {{ count }}, is {{ value }}.",
}
SCENE = {
    "setting": "a beach",
    "objects": [
        {"name": "dog", "count": 2, "attributes": ["brown", ""], "place": None},
        {"name": "cat", "attributes": ["black"], "place": "at the left"},
    ],
    "text": ["STOP"],
}


async def taken_apart(recording_client: Any, value: Any) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    recorder = recording_client(lambda request: 1 / 0)
    texts, about = await Leaves(statements=STATEMENTS)(recorder.client, value=value)
    return texts, about, recorder.flags


async def test_each_value_has_a_statement_where_one_can_be_made(recording_client: Any):
    texts, about, flags = await taken_apart(recording_client, SCENE)
    assert texts == [
        "The setting is a beach.",
        "There is dog.",
        "There are 2 dog.",
        "The dog is brown.",
        "There is cat.",
        "The cat is black.",
    ]
    assert about[3] == {"path": ["objects", 0, "attributes", 0], "value": "brown"}
    assert flags == ["unchecked", "unchecked"]  # the cat's place needs a count, the text has no template


@pytest.mark.parametrize("name", [None, ""])
async def test_no_statement_is_about_a_field_that_is_empty(recording_client: Any, name: Any):
    value = {"objects": [{"name": name, "count": 2, "attributes": ["red"]}]}
    assert await taken_apart(recording_client, value) == ([], [], ["unchecked", "unchecked"])


@pytest.mark.parametrize("value", [None, {}, {"objects": []}, {"setting": ""}, []])
async def test_nothing_has_no_statements(recording_client: Any, value: Any):
    assert await taken_apart(recording_client, value) == ([], [], [])
    assert checked_structure(value, [], []) == (None, [])


def test_values_are_never_templates_and_templates_are_checked_early():
    step = {"stage": "leaves", "value": "v", "statements": {"a": "{{ value"}}
    with pytest.raises(PipelineError, match=r"x: statements\.a: line 1"):
        Pipeline.build({"x": step}, {"v": "any"})
    with pytest.raises(PipelineError, match=r"x: statements\.a: expected a text, got 3"):
        Pipeline.build({"x": step | {"statements": {"a": 3}}}, {"v": "any"})


async def test_a_value_is_text_whatever_it_holds(recording_client: Any):
    texts, _, _ = await taken_apart(recording_client, {"setting": "{{ 7 * 7 }}"})
    assert texts == ["The setting is {{ 7 * 7 }}."]


async def test_what_is_refused_is_left_out_and_returned_separately_with_its_p_yes(recording_client: Any):
    texts, about, _ = await taken_apart(recording_client, SCENE)
    p_yes = [0.9, 0.8, 0.2, 0.7, 0.1, 0.9]
    scores = [
        {"text": t, "p_yes": p, "kept": p > 0.5, "mass": 1.0} for t, p in zip(texts, p_yes, strict=True)
    ]
    structured, refused = checked_structure(SCENE, about, scores)
    assert structured == {
        "setting": {"value": "a beach", "p_yes": 0.9},
        "objects": [
            {"name": {"value": "dog", "p_yes": 0.8}, "attributes": [{"value": "brown", "p_yes": 0.7}]}
        ],
    }
    # A cat that is not there is not black either.
    assert refused == [
        {"path": "objects.0.count", "value": 2, "text": "There are 2 dog.", "p_yes": 0.2},
        {"path": "objects.1.name", "value": "cat", "text": "There is cat.", "p_yes": 0.1},
        {"path": "objects.1.attributes.0", "value": "black", "text": "The cat is black.", "p_yes": 0.9},
        {"path": "objects.1.place", "value": "at the left", "text": None, "p_yes": None},
        {"path": "text.0", "value": "STOP", "text": None, "p_yes": None},
    ]


async def test_nothing_kept_is_null(recording_client: Any):
    texts, about, _ = await taken_apart(recording_client, SCENE)
    scores = [{"text": text, "p_yes": 0.0, "kept": False} for text in texts]
    structured, refused = checked_structure(SCENE, about, scores)
    assert structured is None
    assert len(refused) == 8
