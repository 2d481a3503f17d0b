import pytest

from scalecap.engines.base import PromptTooLong
from scalecap.prompts import Template
from scalecap.stages.complete import Complete
from scalecap.stages.complete_each import CompleteEach

PROMPT = Template("{{ sentences }}|{{ details }}")


async def test_a_reply_is_held_to_its_length(asking):
    asked = asking(lambda _: " A dog runs. It is brown. It is fast. ")
    stage = Complete(prompt=PROMPT, max_sentences=2, max_characters=250)
    assert (
        await stage(asked.ask, variables={"sentences": ["a"], "details": ["b"]}) == "A dog runs. It is brown."
    )
    assert asked.flags == ["shortened"]
    asked = asking(lambda _: "A dog runs. ")
    assert await stage(asked.ask, variables={"sentences": ["a"], "details": []}) == "A dog runs."
    assert asked.flags == []


async def test_items_are_dropped_from_the_end_of_the_longest_list(asking):
    def answer(request):
        if len(request.prompt.text) > 9:
            raise PromptTooLong(len(request.prompt.text), 10)
        return "x"

    asked = asking(answer)
    variables = {"sentences": ["aa", "bb"], "details": ["cc", "dd", "ee"]}
    assert await Complete(prompt=PROMPT)(asked.ask, variables=variables) == "x"
    assert asked.texts[-1] == "aa|cc"
    assert asked.flags == ["shortened"]


async def test_a_text_that_does_not_fit_is_the_rows_error(asking):
    def answer(request):
        raise PromptTooLong(10, 5)

    with pytest.raises(PromptTooLong):
        await Complete(prompt=PROMPT)(asking(answer).ask, variables={"sentences": "aa", "details": ""})


@pytest.mark.parametrize("name", ["max_sentences", "max_characters"])
def test_limits_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name}: 0"):
        Complete(prompt=PROMPT, **{name: 0})


async def test_each_sentence_is_asked_about_alone(asking):
    asked = asking(lambda request: request.prompt.text.upper())
    stage = CompleteEach(prompt=Template("in: {{ sentence }}"))
    assert await stage(asked.ask, sentences=["a", "b"]) == ["IN: A", "IN: B"]
    assert all(request.prompt.image is None for request in asked.requests)
