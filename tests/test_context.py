"""Texts that came with an image: shown to captions, checked like all they say, and credited."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Compose, Rows, captions, roles

from scalecap.config.settings import SettingsError
from scalecap.engines.base import Choose
from scalecap.engines.scripted import Scripted
from scalecap.interpreter.pipeline import PipelineError
from scalecap.runner import RunError, run
from scalecap.stages.context import Context
from scalecap.stages.shared_words import shared_words

NAMED = "Rex is a dog. There is a dog. Rex holds a cat."


@pytest.mark.parametrize(
    ("columns", "texts", "about"),
    [
        (
            {"alt": "Rex runs. He barks.", "tags": ["dog", " ", "Rex"], "year": 2020},
            ["Rex runs.", "He barks.", "dog", "Rex", "2020"],
            ["alt", "alt", "tags", "tags", "year"],
        ),
        ({"alt": None, "tags": [], "title": "", "note": " \n"}, [], []),
        ({"tags": [None, "", {"text": "dog"}]}, ["dog"], ["tags"]),
    ],
)
async def test_texts_and_tags_are_listed_and_empty_values_give_nothing(
    recording_client: Any, columns: dict[str, Any], texts: list[str], about: list[str]
):
    assert await Context()(recording_client(lambda request: 1 / 0).client, columns=columns) == (texts, about)


def test_each_sentence_lists_the_words_that_it_shares():
    found = shared_words(
        "Rex is a brown dog. There are two balls.  The grass is green.",
        ["Rex at the park.", "brown", "dog"],
        ["alt", "tags", "tags"],
    )
    assert found == [
        {
            "text": "Rex is a brown dog.",
            "shared": [
                {"column": "alt", "text": "Rex at the park.", "words": ["rex"]},
                {"column": "tags", "text": "brown", "words": ["brown"]},
                {"column": "tags", "text": "dog", "words": ["dog"]},
            ],
        },
        {"text": "There are two balls.", "shared": []},
        {"text": "The grass is green.", "shared": []},
    ]
    assert shared_words("", ["dog"], ["tags"]) == []


@pytest.fixture
def given(rows: Rows, tmp_path: Path) -> list[str]:
    """Five rows, of which the first has both columns, the others empty ones or none."""
    path = rows(5)
    contexts: list[dict[str, Any]] = [
        {"alt": "Rex at the park.", "tags": ["dog", "frisbee"]},
        {"alt": "", "tags": []},
        {"alt": None, "tags": None},
        {"alt": "Rex at the park."},
        {},
    ]
    file = tmp_path / "rows.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    pairs = zip(lines, contexts, strict=True)
    file.write_text("\n".join(json.dumps({**line, **context}) for line, context in pairs))
    return ["data=jsonl", path, "progress=false", "report=false", "data.context=[alt,tags]", "also=context"]


def scripted(answer: Callable[..., Any], prompts: list[str]) -> dict[str, Scripted]:
    """A model that names the dog when it is given the name, and a language model that loses nothing."""

    def script(request: Any) -> Any:
        text = request.prompt.text
        if text.startswith("Describe the fine-grained"):
            prompts.append(text)
            return NAMED if "Rex" in text else "There is a dog. There is a cat."
        if not isinstance(request, Choose) and text.startswith("Join into one description:\n"):
            return text.partition("\n")[2]
        return answer(request)

    return roles(script)


def test_context_is_shown_checked_and_credited(
    compose: Compose, answer: Callable[..., Any], given: list[str]
):
    prompts: list[str] = []
    summary = run(compose(*given, "rows_in_flight=1"), engines=scripted(answer, prompts))
    assert (summary.done, summary.failed) == (5, 0)
    rows = captions()
    plain = compose("prompts=seed").prompts["caption"]
    assert prompts[0].startswith(f"{plain}\n\nThese texts came with the image.")
    assert "\nRex at the park.\ndog\nfrisbee\n" in prompts[0]
    assert [text == plain for text in prompts] == [False, True, True, False, True]
    first = rows[0]
    # Given texts are refused like anything else, and sentences that passed list what they share.
    assert first["golden_sentences"] == ["Rex is a dog.", "There is a dog."]
    assert "cat" not in first["final_caption"]
    shared = {each["text"]: [one["words"] for one in each["shared"]] for each in first["final_sources"]}
    assert shared["Rex is a dog."] == [["rex"], ["dog"]]
    assert shared["The dog is at the left."] == [["dog"]]
    for row in rows[1:3] + rows[4:]:
        assert row["row_context"] == []
        assert all(each["shared"] == [] for each in row["final_sources"])
    assert rows[2]["alt"] is None
    assert rows[1]["tags"] == []


def test_context_that_no_prompt_uses_and_missing_columns_are_refused(
    compose: Compose, engines: dict[str, Scripted], given: list[str]
):
    with pytest.raises(RunError, match=r"row_context: no prompt uses it; choose .* prompts/caption=context"):
        run(compose(*given, "prompts/caption=seed"), engines=engines)
    with pytest.raises(RunError, match=r"row_context: columns\.tag: no step and no data column .* 'tag'"):
        run(compose(*given, "data.context=[tag]"), engines=engines)
    with pytest.raises(SettingsError, match=r"data\.context=\[COLUMN\] is required"):
        compose(*given, "data.context=[]")


def test_every_draft_of_dense_is_shown_it(compose: Compose, given: list[str]):
    from scalecap.interpreter.pipeline import Pipeline

    steps = compose(*given, "pipeline=dense").pipeline.steps
    reads = {step.name: step.reads for step in Pipeline.build(steps, {"alt": "text", "tags": "texts"}).steps}
    assert "row_context" in reads["drafts"]
    assert "row_context" not in reads["part_drafts"]
    with pytest.raises(PipelineError):
        Pipeline.build({name: step for name, step in steps.items() if name != "row_context"}, {})
