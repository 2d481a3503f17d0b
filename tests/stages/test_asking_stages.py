"""caption, complete, answer: what is asked, of whom, and when nothing is."""

import pytest

from scalecap.engines.base import Sampling
from scalecap.prompts import Template
from scalecap.stages.answer import Answer
from scalecap.stages.caption import Caption
from scalecap.stages.complete import Complete


async def test_caption(asking, image):
    asked = asking(lambda _: " A dog. ")
    caption = Caption(prompt=Template("Describe."), sampling=Sampling(max_tokens=7))
    assert await caption(asked.ask, image=image) == " A dog. "
    (request,) = asked.requests
    assert (request.prompt.text, request.prompt.image) == ("Describe.", image)
    assert request.prompt.system == "You are a helpful assistant."
    assert request.sampling == Sampling(max_tokens=7)


@pytest.mark.parametrize(
    ("variables", "prompt"),
    [
        ({"a": ["x", "y"], "b": "z"}, "x\ny|z"),
        ({"a": [], "b": "z"}, "|z"),
        ({"a": None, "b": 3}, "|3"),
        ({"a": ["{{ b }}"], "b": "{% if %}"}, "{{ b }}|{% if %}"),
    ],
)
async def test_complete_fills_the_prompt_with_text_alone(asking, variables, prompt):
    asked = asking(lambda _: "reply")
    assert await Complete(prompt=Template("{{ a }}|{{ b }}"))(asked.ask, variables=variables) == "reply"
    assert asked.texts == [prompt]
    assert asked.requests[0].prompt.image is None


@pytest.mark.parametrize("variables", [{"a": [], "b": ""}, {"a": ["", " "], "b": None}])
async def test_complete_asks_nothing_about_nothing(asking, variables):
    asked = asking(lambda _: "reply")
    assert await Complete(prompt=Template("{{ a }}|{{ b }}"))(asked.ask, variables=variables) == ""
    assert asked.requests == []


async def test_answers_stand_in_the_order_of_questions(asking, image):
    asked = asking(lambda request: request.prompt.text.upper())
    answers = await Answer()(asked.ask, questions=["b?", "a?"], image=image)
    assert answers == ["B?", "A?"]
    assert all(request.prompt.image == image for request in asked.requests)


async def test_a_question_may_have_a_prompt(asking, image):
    asked = asking(lambda _: "")
    await Answer(prompt=Template("Q: {{ question }}"))(asked.ask, questions=["a?"], image=image)
    assert asked.texts == ["Q: a?"]


async def test_no_question_asks_nothing(asking, image):
    asked = asking(lambda _: "")
    assert await Answer()(asked.ask, questions=[], image=image) == []
    assert asked.requests == []
