import pytest

from scalecap.engines.base import PromptTooLong
from scalecap.prompts import Template
from scalecap.stages.fuse import Fuse

PROMPT = Template("{{ context }}|{{ object_info }}|{{ position_info }}")


async def fuse(asked, context=(), objects=(), positions=(), *, initial="first", **settings):
    return await Fuse(prompt=PROMPT, **settings)(
        asked.ask,
        context=list(context),
        object_info=list(objects),
        position_info=list(positions),
        initial=initial,
    )


def window(limit):
    """A script that takes prompts of at most `limit` characters, one a token."""

    def answer(request):
        if len(request.prompt.text) > limit:
            raise PromptTooLong(len(request.prompt.text), limit)
        return "fused"

    return answer


async def test_all_lists_are_lines_of_a_prompt_without_a_picture(asking):
    asked = asking(lambda _: "fused")
    assert await fuse(asked, ["a", "b"], ["c", "d"], ["e"]) == "fused"
    assert asked.texts == ["a\nb|c\nd|e"]
    assert asked.requests[0].prompt.image is None
    assert asked.flags == []


@pytest.mark.parametrize(
    ("settings", "initial", "caption"),
    [({}, "first", "first"), ({}, None, ""), ({"fallback": "empty"}, "first", "")],
)
async def test_no_sentence_asks_nothing_and_falls_back(asking, settings, initial, caption):
    asked = asking(lambda _: "fused")
    assert await fuse(asked, [], ["c"], ["e"], initial=initial, **settings) == caption
    assert asked.requests == []
    assert asked.flags == ["fallback"]


@pytest.mark.parametrize(
    ("objects", "positions", "prompt"),
    [
        (["aaaa"] * 2, ["bbbb"] * 2, "x|aaaa\naaaa|bbbb\nbbbb"),
        (["aaaa"] * 4, ["bbbb"] * 4, "x|aaaa\naaaa|bbbb"),
        (["aaaa"] * 9, ["bbbb"], "x|aaaa\naaaa|bbbb"),
        (["a" * 50], [], "x||"),
    ],
)
async def test_details_are_dropped_from_the_end_of_the_longer_list(asking, objects, positions, prompt):
    asked = asking(window(22))
    assert await fuse(asked, ["x"], objects, positions) == "fused"
    assert asked.texts[-1] == prompt
    assert asked.flags == ([] if len(asked.texts) == 1 else ["shortened"])


async def test_a_wrong_estimate_still_drops_until_it_fits(asking):
    def answer(request):
        if request.prompt.text != "x|a|":
            raise PromptTooLong(10, 1000)
        return "fused"

    asked = asking(answer)
    assert await fuse(asked, ["x"], ["a", "b"], ["c", "d"]) == "fused"
    assert asked.texts == ["x|a\nb|c\nd", "x|a\nb|c", "x|a|c", "x|a|"]


async def test_nothing_left_to_drop_fails(asking):
    asked = asking(window(3))
    with pytest.raises(PromptTooLong):
        await fuse(asked, ["xxxx"], ["a"], ["b"])
    assert asked.flags == []


def test_check_names_the_column_that_the_fallback_needs():
    assert "write `initial: init_caption`" in (Fuse(prompt=PROMPT).check(["context"]) or "")
    assert Fuse(prompt=PROMPT).check(["context", "initial"]) is None
    assert Fuse(prompt=PROMPT, fallback="empty").check(["context"]) is None
