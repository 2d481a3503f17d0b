"""generate: what is sent to which model, how its reply is read, and when nothing is sent."""

import json
from typing import Any

import pytest

from scalecap.engines.base import Generated, Image, PromptTooLong, Sampling
from scalecap.interpreter.pipeline import Pipeline, PipelineError
from scalecap.stages.generate import Generate
from scalecap.text.templates import Expression, PromptError, Template

PROMPT = Template("{{ sentences }}|{{ details }}")


async def test_a_caption(recording_client, image):
    recorder = recording_client(lambda _: " A dog. ")
    caption = Generate(prompt=Template("Describe."), sampling=Sampling(max_tokens=7))
    assert await caption(recorder.client, image=image) == " A dog. "
    (request,) = recorder.requests
    assert (request.prompt.text, request.prompt.image) == ("Describe.", image)
    assert request.prompt.system == "You are a helpful assistant."
    assert request.sampling == Sampling(max_tokens=7)


@pytest.mark.parametrize(
    ("variables", "prompt"),
    [
        ({"a": ["x", "y"], "b": "z"}, "x\ny|z"),
        ({"a": [], "b": "z"}, "|z"),
        ({"a": None, "b": 3}, "|3"),
        ({"a": [{"text": "x", "p_yes": 0.5}, "y"], "b": {"text": "z"}}, "x\ny|z"),
        ({"a": ["{{ b }}"], "b": "{% if %}"}, "{{ b }}|{% if %}"),
    ],
)
async def test_columns_fill_the_prompt(recording_client, image, variables, prompt):
    recorder = recording_client(lambda _: "reply")
    stage = Generate(prompt=Template("{{ a }}|{{ b }}"))
    assert await stage(recorder.client, variables=variables) == "reply"
    assert await stage(recorder.client, variables=variables, image=image) == "reply"
    assert recorder.texts == [prompt, prompt]
    assert [request.prompt.image for request in recorder.requests] == [None, image]


@pytest.mark.parametrize("variables", [{"a": [], "b": ""}, {"a": ["", " "], "b": None}])
async def test_empty_variables_make_no_request_unless_there_is_an_image(recording_client, image, variables):
    recorder = recording_client(lambda _: "reply")
    stage = Generate(prompt=Template("{{ a }}|{{ b }}"))
    assert await stage(recorder.client, variables=variables) == ""
    assert await Generate(prompt=PROMPT, parse="lines")(recorder.client, variables=variables) == []
    assert recorder.requests == []
    assert await stage(recorder.client, variables=variables, image=image) == "reply"


async def test_the_retry_prompt_is_filled_as_the_prompt_is(recording_client, image):
    recorder = recording_client(
        lambda r: "fine" if r.prompt.text.startswith("Please") else "I'm sorry, but I can't help."
    )
    stage = Generate(prompt=Template("{{ a }}"), retry_prompt=Template("Please {{ a }}"))
    assert await stage(recorder.client, image=image, each={"a": ["x", "y"]}) == ["fine", "fine"]
    assert sorted(recorder.texts) == ["Please x", "Please y", "x", "y"]
    assert all(request.prompt.image is image for request in recorder.requests)
    assert recorder.flags == ["reprompted", "reprompted"]
    stage = Generate(prompt=Template("{{ a }}"))
    assert await stage(recorder.client, variables={"a": "x"}) == "I'm sorry, but I can't help."
    assert recorder.flags[2:] == ["refused"]


async def test_each_item_has_a_reply_in_its_place(recording_client, image):
    recorder = recording_client(lambda request: request.prompt.text.upper())
    stage = Generate(prompt=Template("{{ about }} {{ question }}"))
    answers = await stage(
        recorder.client, image=image, variables={"about": "q:"}, each={"question": ["b?", "a?", "b?"]}
    )
    assert answers == ["Q: B?", "Q: A?", "Q: B?"]
    assert all(request.prompt.image == image for request in recorder.requests)


async def test_no_item_makes_no_request(recording_client, image):
    recorder = recording_client(lambda _: "")
    assert (
        await Generate(prompt=PROMPT)(recorder.client, image=image, each={"sentences": [], "details": None})
        == []
    )
    assert recorder.requests == []


async def test_several_lists_go_side_by_side(recording_client):
    recorder = recording_client(lambda request: request.prompt.text)
    each = {"sentences": ["a", "b"], "details": ["c", "d"]}
    assert await Generate(prompt=PROMPT)(recorder.client, each=each) == ["a|c", "b|d"]
    with pytest.raises(ValueError, match=r"lists of equal length, got {'sentences': 1, 'details': 0}"):
        await Generate(prompt=PROMPT)(recorder.client, each={"sentences": ["a"], "details": []})


async def test_the_lines_of_all_replies_have_the_index_of_their_item(recording_client):
    replies = {"two": "- A dog.\n\n 2. It is brown. \n", "none": " \n", "one": "3 dogs.\n"}
    recorder = recording_client(lambda request: replies[request.prompt.text])
    stage = Generate(prompt=Template("{{ s }}"), parse="lines")
    found = await stage(recorder.client, each={"s": ["two", "none", "one", ""]})
    assert found == (["A dog.", "It is brown.", "3 dogs."], [0, 0, 2])
    assert len(recorder.requests) == 3
    assert await stage(recorder.client, variables={"s": "two"}) == ["A dog.", "It is brown."]


@pytest.mark.parametrize("parse", ["lines", "sentences"])
async def test_a_refusal_has_no_lines(recording_client, parse):
    replies = {"a": "I can't help.", "b": "A dog.", "c": "I can't identify the person.\nA cat."}
    recorder = recording_client(lambda request: replies[request.prompt.text])
    stage = Generate(prompt=Template("{{ s }}"), parse=parse)
    assert await stage(recorder.client, each={"s": ["a", "b", "c"]}) == (["A dog.", "A cat."], [1, 2])
    assert recorder.flags == ["refused"] * 2


async def test_each_request_is_shown_its_own_view(recording_client, image):
    one, other = Image("one", image.pixels), Image("other", image.pixels)
    recorder = recording_client(lambda request: request.prompt.image.hash)
    stage = Generate(prompt=Template("Describe."))
    assert await stage(recorder.client, views=[one, None, other]) == ["one", "", "other"]
    each = Generate(prompt=Template("{{ s }}?"), parse="lines")
    assert await each(recorder.client, each={"s": ["a", "b"]}, views=[None, other]) == (["other"], [1])
    assert recorder.texts == ["Describe.", "Describe.", "b?"]
    with pytest.raises(ValueError, match=r"lists of equal length, got {'s': 1, 'views': 2}"):
        await each(recorder.client, each={"s": ["a"]}, views=[one, other])


async def test_samples_are_independent_draws(recording_client, image):
    replies = iter(["A dog.\nIt runs.", "", "A cat."])
    recorder = recording_client(lambda _: next(replies))
    stage = Generate(prompt=Template("Describe."), samples=3, parse="lines")
    assert await stage(recorder.client, image=image) == (["A dog.", "It runs.", "A cat."], [0, 0, 2])
    assert len({request.seed for request in recorder.requests}) == 3
    again = recording_client(lambda request: str(request.seed))
    one, more = Generate(prompt=Template("Describe."), samples=1), Generate(prompt=Template("Describe."))
    # The first draw is that of a step without samples, so that a sweep over their number reuses it.
    assert await one(again.client, image=image) == [await more(again.client, image=image)]
    assert again.requests[0] == recorder.requests[0]


async def test_requests_are_made_only_for_items_that_meet_the_condition(recording_client, image):
    recorder = recording_client(lambda request: request.prompt.text)
    stage = Generate(prompt=Template("{{ s }}"), where=Expression("0.3 < check.p_yes < 0.7"))
    checks = [{"p_yes": p} for p in (0.9, 0.5, 0.1)]
    assert await stage(recorder.client, image=image, each={"s": ["a", "b", "c"], "check": checks}) == [
        "",
        "b",
        "",
    ]
    assert recorder.texts == ["b"]
    assert recorder.flags == []
    assert await stage(recorder.client, image=image, each={"s": ["a"], "check": checks[:1]}) == [""]
    assert recorder.flags == ["skipped"]
    with pytest.raises(PromptError, match="p_yes"):
        await stage(recorder.client, image=image, each={"s": ["a"], "check": [{"p_yes": None}]})


BOX = {
    "type": "object",
    "required": ["box"],
    "properties": {"box": {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}},
}


async def test_a_json_value_follows_its_schema(recording_client):
    recorder = recording_client(lambda _: 'Here it is:\n```json\n{"box": [1, 2, 3, 4]}\n```')
    stage = Generate(prompt=Template("{{ s }}"), parse="json", schema=BOX)
    assert await stage(recorder.client, variables={"s": "x"}) == {"box": [1, 2, 3, 4]}
    assert json.loads(recorder.requests[0].schema) == BOX
    assert recorder.flags == []
    assert await stage(recorder.client, each={"s": ["x", ""]}) == [{"box": [1, 2, 3, 4]}, None]


@pytest.mark.parametrize(
    "reply", ["", "none", '{"box": [1, 2, 3]}', '{"box": [1, 2, 3, "4"]}', '{"box": NaN}', "[" * 10_000]
)
async def test_an_unparsable_reply_is_drawn_once_more_and_then_null(recording_client, reply):
    recorder = recording_client(lambda _: reply)
    stage = Generate(prompt=Template("{{ s }}"), parse="json", schema=BOX)
    assert await stage(recorder.client, variables={"s": "x"}) is None
    assert recorder.flags[0] == "unparsed"
    assert len(recorder.requests) == 2
    replies = iter([reply, '{"box": [1, 2, 3, 4]}'])
    recorder = recording_client(lambda _: next(replies))
    assert await stage(recorder.client, variables={"s": "x"}) == {"box": [1, 2, 3, 4]}
    assert recorder.flags == []
    recorder = recording_client(lambda _: reply)
    greedy = Generate(prompt=Template("{{ s }}"), parse="json", schema=BOX, sampling=Sampling(temperature=0))
    assert await greedy(recorder.client, variables={"s": "x"}) is None
    assert len(recorder.requests) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"schema": {}}, "schema requires `parse: json`"),
        ({"parse": "json", "schema": {"type": "box"}}, r"schema: \$.type: 'box' is not valid"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Generate(prompt=PROMPT, **settings)


async def test_a_reply_is_cut_to_its_limits(recording_client):
    recorder = recording_client(lambda _: " A dog runs. It is brown. It is fast. ")
    stage = Generate(prompt=PROMPT, max_sentences=2, max_characters=250)
    assert (
        await stage(recorder.client, variables={"sentences": ["a"], "details": ["b"]})
        == "A dog runs. It is brown."
    )
    assert recorder.flags == ["shortened"]
    recorder = recording_client(lambda _: "A dog runs. ")
    assert await stage(recorder.client, variables={"sentences": ["a"], "details": []}) == "A dog runs."
    assert recorder.flags == []


async def test_an_announcement_does_not_count_towards_the_limit(recording_client):
    recorder = recording_client(
        lambda _: "Here is the alternative text:\nA dog runs. It is brown.\nYou may want to add:"
    )
    stage = Generate(prompt=PROMPT, max_sentences=2)
    assert (
        await stage(recorder.client, variables={"sentences": ["a"], "details": []})
        == "A dog runs. It is brown."
    )
    assert recorder.flags == []


@pytest.mark.parametrize(
    ("parse", "expected"), [("text", "A dog runs.\nIt is brown."), ("lines", ["A dog runs.", "It is brown."])]
)
async def test_a_cut_reply_ends_with_its_last_sentence(recording_client, image, parse, expected):
    recorder = recording_client(
        lambda _: Generated("A dog runs.\nIt is brown.\nIt is brown.\nIt i", "length")
    )
    assert await Generate(prompt=Template("Describe."), parse=parse)(recorder.client, image=image) == expected
    assert recorder.flags == ["truncated"]


def window(limit):
    def answer(request):
        if len(request.prompt.text) > limit:
            raise PromptTooLong(len(request.prompt.text), limit)
        return "x"

    return answer


async def test_items_are_dropped_from_the_end_of_the_longest_list(recording_client, image):
    recorder = recording_client(window(9))
    variables = {"sentences": ["aa", "bb"], "details": ["cc", "dd", "ee"]}
    assert await Generate(prompt=PROMPT)(recorder.client, variables=variables, image=image) == "x"
    assert recorder.texts[-1] == "aa|cc"
    assert recorder.flags == ["shortened"]
    assert all(request.prompt.image == image for request in recorder.requests)


async def test_the_least_probable_item_is_dropped_first(recording_client):
    recorder = recording_client(window(12))
    records = [{"text": text, "p_yes": p} for text, p in (("aaa", 0.6), ("bbb", 0.2), ("ccc", 0.9))]
    stage = Generate(prompt=Template("{{ s }}"))
    assert await stage(recorder.client, variables={"s": [{"text": "head", "p_yes": None}, *records]}) == "x"
    assert recorder.texts[-1] == "head\nccc"


async def test_a_text_that_does_not_fit_is_the_rows_error(recording_client):
    with pytest.raises(PromptTooLong):
        await Generate(prompt=PROMPT)(
            recording_client(window(1)).client, variables={"sentences": "aa", "details": ["bb", "cc"]}
        )


@pytest.mark.parametrize("name", ["max_sentences", "max_characters"])
def test_limits_are_at_least_one_and_of_texts(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        Generate(prompt=PROMPT, **{name: 0})
    with pytest.raises(ValueError, match=f"{name} requires `parse: text`"):
        Generate(prompt=PROMPT, parse="lines", **{name: 1})


@pytest.mark.parametrize(
    ("parse", "reply", "expected", "flags"),
    [
        ("text", "One two.  Three four five.\nSix.", "One two.  Three four five.", ["shortened"]),
        ("sentences", "- One two.\n- Three. Four five six.", ["One two.", "Three."], ["shortened"]),
        ("sentences", "One two three four five six.", ["One two three four five six."], ["too_long"]),
        ("text", "One two three four five.", "One two three four five.", []),
        ("sentences", "None.", [], []),
        ("sentences", "一只狗。一只猫。", ["一只狗。"], ["shortened"]),
    ],
)
async def test_max_words_leaves_out_whole_sentences_and_is_in_the_prompt(
    recording_client: Any, parse: Any, reply: str, expected: Any, flags: list[str]
):
    recorder = recording_client(lambda request: reply)
    prompt = Template("At most {{ max_words }} words{{ max_sentences or '' }}: {{ a }}")
    stage = Generate(prompt=prompt, parse=parse, max_words=5, sampling=Sampling(temperature=0))
    assert await stage(recorder.client, variables={"a": "facts"}) == expected
    assert recorder.flags == flags
    assert recorder.texts == ["At most 5 words: facts"]


def test_max_words_is_a_setting_and_not_a_column():
    steps = {"x": {"stage": "generate", "prompt": "{{ max_words }}: {{ a }}", "variables": {"a": "a"}}}
    plan = Pipeline.build({"x": steps["x"] | {"max_words": 7}}, {"a": "text"}).plan()
    assert "      | 7: <a>\n" in plan + "\n"
    with pytest.raises(PipelineError, match=r"max_words requires `parse: text` or `parse: sentences`"):
        Pipeline.build({"x": steps["x"] | {"max_words": 7, "parse": "lines"}}, {"a": "text"})
