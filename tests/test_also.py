"""Steps of `also=`: what they write from the facts that passed, on the scripted and on the embedded model."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from runs import Compose, captions, roles

from scalecap.engines.base import Choose
from scalecap.engines.scripted import Scripted
from scalecap.runner import run
from scalecap.text.segmentation import words

LENGTHS = {"short": 25, "medium": 60, "long": 200}
LONG = f"A dog with {', '.join(f'{spots} spots' for spots in range(12, 24))} and more sits."
"""A sentence of 30 words."""


def scripted(answer: Callable[..., Any], reply: Callable[[str], str | None]) -> dict[str, Scripted]:
    """The scripted model, with the replies of `reply` where that returns one."""

    def script(request: Any) -> Any:
        own = None if isinstance(request, Choose) else reply(request.prompt.text)
        return answer(request) if own is None else own

    return roles(script)


def test_each_length_is_checked_again_and_within_its_words(compose: Compose, answer: Callable[..., Any]):
    more = [f"The dog has {spots} brown spots now." for spots in range(12, 20)]
    said = " ".join(["A dog sits.", "A cat sleeps.", *more])
    prompts: list[str] = []

    def reply(text: str) -> str | None:
        if not text.startswith("Facts about one image"):
            return None
        prompts.append(text)
        return LONG if "in one sentence" in text else said

    settings = compose("data.limit=1", "also=lengths", "prompts/length=default")
    run(settings, engines=scripted(answer, reply))
    (row,) = captions()
    assert ["in one sentence of at most 25 words" in each for each in prompts] == [True, False, False]
    assert ["of at most 60 words" in prompts[1], "of at most 200 words" in prompts[2]] == [True, True]
    assert all("There is a dog." in each and "The dog is brown." in each for each in prompts)
    # A sentence that is too long stays whole; what exceeds the limit is cut by whole sentences.
    assert row["short_caption"] == LONG
    assert row["medium_sentences"] == ["A dog sits.", "A cat sleeps.", *more[:7]]  # 6 words and 7 times 7
    assert row["medium_caption"] == " ".join(["A dog sits.", *more[:7]])
    assert row["medium_checked_refuted"] == ["A cat sleeps."]
    assert row["long_caption"] == " ".join(["A dog sits.", *more])
    assert row["flags"]["short_sentences"] == ["too_long"]
    assert row["flags"]["medium_sentences"] == ["shortened"]
    assert "long_sentences" not in row["flags"]


def test_where_no_sentence_passes_the_facts_are_used_up_to_the_limit(
    compose: Compose, answer: Callable[..., Any]
):
    engines = scripted(answer, lambda text: "A cat." if text.startswith("Facts about one image") else None)
    words = [
        "data.limit=1",
        "also=lengths",
        "prompts/length=default",
        "pipeline.steps.short_sentences.max_words=3",
    ]
    run(compose(*words), engines=engines)
    (row,) = captions()
    assert row["short_caption"] == row["long_caption"] == "There is a dog."
    assert row["flags"]["short_caption"] == ["fallback", "too_long"]
    assert row["flags"]["long_caption"] == ["fallback"]


SCENE = {"objects": [{"name": "dog", "count": 1, "place": "at the left"}, {"name": "cat", "count": 2}]}


@pytest.mark.parametrize("reply", [json.dumps(SCENE), f"```json\n{json.dumps(SCENE)}\n```"])
def test_each_value_of_a_structured_caption_is_checked(
    compose: Compose, answer: Callable[..., Any], reply: str
):
    engines = scripted(answer, lambda text: reply if text == "Describe the picture as JSON." else None)
    summary = run(compose("data.limit=1", "also=structured"), engines=engines)
    (row,) = captions()
    assert row["structured"] == {
        "objects": [
            {
                "name": {"value": "dog", "p_yes": 0.9},
                "count": {"value": 1, "p_yes": 0.9},
                "place": {"value": "at the left", "p_yes": 0.9},
            }
        ]
    }
    assert [each["path"] for each in row["structured_refused"]] == ["objects.1.name", "objects.1.count"]
    assert summary.usage.steps["structured_checked"].requests == 5
    assert row["flags"] == {}


@pytest.mark.parametrize(
    "reply", ["", "A dog.", '{"objects": [{"count": 1}]}', '{"objects": [{"name": "dog"', "[1]"]
)
def test_a_reply_that_is_not_the_expected_json_is_flagged_and_not_checked(
    compose: Compose, answer: Callable[..., Any], reply: str
):
    engines = scripted(answer, lambda text: reply if text == "Describe the picture as JSON." else None)
    summary = run(compose("data.limit=2", "also=structured"), engines=engines)
    assert summary.flags["structured_draft"]["unparsed"] == 2
    assert (summary.done, summary.failed) == (2, 0)
    assert summary.usage.steps["structured_checked"].requests == 0
    for row in captions():
        assert (row["structured"], row["structured_refused"]) == (None, [])


def test_texts_are_written_from_all_facts_of_dense(compose: Compose, engines: dict[str, Scripted]):
    run(compose("data.limit=1", "pipeline=dense", "also=[lengths,structured,alt_text]"), engines=engines)
    (row,) = captions()
    assert row["long_caption"] == "A dog, brown."
    steps = compose("pipeline=dense", "also=[lengths,alt_text]").pipeline.steps
    assert steps["long_sentences"]["variables"] == steps["alt_text"]["variables"]
    assert steps["long_sentences"]["variables"] == {"sentences": "facts", "details": "details"}


def test_on_the_embedded_model(compose: Compose):
    """It joins facts and writes JSON, as it was taught."""
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    words_ = ["data.limit=3", "also=[lengths,structured]", "progress=false", "report=false", "cache=off"]
    summary = run(compose(*words_))
    assert (summary.done, summary.failed) == (3, 0)
    assert "structured_draft" not in summary.flags  # all of it parses
    for row in captions():
        objects = row["structured"]["objects"]
        assert objects
        assert all(value["p_yes"] >= 0.5 for each in objects for value in (each["name"], each["place"]))
        for name, most in LENGTHS.items():
            caption = row[f"{name}_caption"]
            assert caption.endswith(".")
            assert len(words(caption)) <= most
        checked = [each for name in LENGTHS for each in row[f"{name}_checked_scores"]]
        assert checked
        assert all(each["p_yes"] is not None for each in checked)
