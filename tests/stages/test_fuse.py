import pytest

from scalecap.engines.base import Generated, PromptTooLong, Usage
from scalecap.stages.fuse import Fuse
from scalecap.text.templates import Template

PROMPT = Template("{{ context }}|{{ object_info }}|{{ position_info }}")


async def fuse(recorder, context=(), objects=(), positions=(), *, initial="first", scores=None, **settings):
    return await Fuse(prompt=PROMPT, **settings)(
        recorder.client,
        context=list(context),
        object_info=list(objects),
        position_info=list(positions),
        initial=initial,
        scores=scores,
    )


def window(limit):
    """A script that takes prompts of at most `limit` characters, one a token."""

    def answer(request):
        if len(request.prompt.text) > limit:
            raise PromptTooLong(len(request.prompt.text), limit)
        return "fused"

    return answer


async def test_all_lists_are_lines_of_a_prompt_without_an_image(recording_client):
    recorder = recording_client(lambda _: "fused")
    assert await fuse(recorder, ["a", "b"], ["c", "d"], ["e"]) == "fused"
    assert recorder.texts == ["a\nb|c\nd|e"]
    assert recorder.requests[0].prompt.image is None
    assert recorder.flags == []


async def test_a_fused_caption_needs_no_lexicon(recording_client, monkeypatch):
    """Its loading would hold up the first rows."""
    monkeypatch.setattr("scalecap.stages.assemble.tagged", lambda text: 1 / 0)
    assert await fuse(recording_client(lambda _: "fused"), ["a"], ["c"]) == "fused"


async def test_the_caption_is_not_announced(recording_client):
    recorder = recording_client(lambda _: "Sure! Here is the description:\n\nA brown dog runs.")
    assert await fuse(recorder, ["a"], ["b"], ["c"]) == "A brown dog runs."


async def test_a_cut_caption_ends_with_its_last_sentence(recording_client):
    recorder = recording_client(lambda _: Generated("A dog runs. It is brown. It i", "length"))
    assert await fuse(recorder, ["a"], ["b"], ["c"]) == "A dog runs. It is brown."
    assert recorder.flags == ["truncated"]


@pytest.mark.parametrize(
    ("reply", "flag"), [("I'm sorry, but I can't assist with that.", "refused"), (" \n", "empty")]
)
async def test_a_reply_without_a_caption_loses_nothing(recording_client, reply, flag):
    recorder = recording_client(lambda _: reply)
    assert (
        await fuse(recorder, ["A dog."], ["It is brown."], ["It is left."])
        == "A dog. It is brown. It is left."
    )
    assert recorder.flags == [flag, "fallback"]


@pytest.mark.parametrize(
    ("settings", "initial", "caption"),
    [({}, "first", "first"), ({}, None, ""), ({"fallback": "empty"}, "first", "")],
)
async def test_no_sentence_makes_no_request_and_falls_back(recording_client, settings, initial, caption):
    recorder = recording_client(lambda _: "fused")
    assert await fuse(recorder, [], ["c"], ["e"], initial=initial, **settings) == caption
    assert recorder.requests == []
    assert recorder.flags == ["fallback"]


@pytest.mark.parametrize(
    ("objects", "positions", "prompt"),
    [
        (["aaaa"] * 2, ["bbbb"] * 2, "x|aaaa\naaaa|bbbb\nbbbb"),
        (["aaaa"] * 4, ["bbbb"] * 4, "x|aaaa\naaaa|bbbb"),
        (["aaaa"] * 9, ["bbbb"], "x|aaaa\naaaa|bbbb"),
        (["a" * 50], [], "x||"),
    ],
)
async def test_details_are_dropped_from_the_end_of_the_longer_list(
    recording_client, objects, positions, prompt
):
    recorder = recording_client(window(22))
    assert await fuse(recorder, ["x"], objects, positions) == "fused"
    assert recorder.texts[-1] == prompt
    assert recorder.flags == ([] if len(recorder.texts) == 1 else ["shortened"])


async def test_a_wrong_estimate_still_drops_until_it_fits(recording_client):
    def answer(request):
        if request.prompt.text != "x|a|":
            raise PromptTooLong(10, 1000)
        return "fused"

    recorder = recording_client(answer)
    assert await fuse(recorder, ["x"], ["a", "b"], ["c", "d"]) == "fused"
    assert recorder.texts == ["x|a\nb|c\nd", "x|a\nb|c", "x|a|c", "x|a|"]


async def test_a_reply_cut_by_the_context_is_requested_again_with_fewer_details(recording_client):
    def answer(request):
        tokens = len(request.prompt.text)
        room = 20 - tokens
        return Generated(
            "fused" if room > 5 else "fu", "stop" if room > 5 else "context", Usage(tokens, 0, room)
        )

    recorder = recording_client(answer)
    assert await fuse(recorder, ["x"], ["aaaa", "bbbb"], ["cccc", "d"]) == "fused"
    assert recorder.texts == ["x|aaaa\nbbbb|cccc\nd", "x|aaaa|cccc"]
    assert recorder.flags == ["shortened"]


async def test_nothing_left_to_drop_gives_the_sentences(recording_client):
    recorder = recording_client(window(3))
    assert await fuse(recorder, ["xxxx", "yy"], ["a"], ["b"]) == "xxxx yy"
    assert recorder.flags == ["shortened", "fallback"]


async def test_without_details_no_request_is_made(recording_client):
    recorder = recording_client(window(99))
    assert await fuse(recorder, ["A dog.", "A cat."]) == "A dog. A cat."
    assert (recorder.requests, recorder.flags) == ([], [])


async def test_the_least_probable_details_go_first(recording_client):
    recorder = recording_client(window(22))
    scores = [
        *({"text": text, "p_yes": p_yes, "kept": True} for text, p_yes in (("aaaa", 0.9), ("bbbb", 0.6))),
        {"text": "dropped", "p_yes": 0.1, "kept": False},
        *({"text": text, "p_yes": p_yes, "kept": True} for text, p_yes in (("cccc", 0.7), ("dddd", 0.8))),
    ]
    assert await fuse(recorder, ["x"], ["aaaa", "bbbb"], ["cccc", "dddd"], scores=scores) == "fused"
    assert recorder.texts == ["x|aaaa\nbbbb|cccc\ndddd"]
    recorder = recording_client(window(16))
    assert await fuse(recorder, ["x"], ["aaaa", "bbbb"], ["cccc", "dddd"], scores=scores) == "fused"
    assert recorder.texts[1:] == ["x|aaaa|dddd"]
    assert recorder.flags == ["shortened"]


async def test_with_an_unknown_probability_details_are_dropped_from_the_end(recording_client):
    recorder = recording_client(window(16))
    scores = [{"text": "aaaa", "p_yes": 0.1, "kept": True}, {"text": "bbbb", "p_yes": None, "kept": True}]
    await fuse(recorder, ["x"], ["aaaa", "bbbb"], ["cccc", "dddd"], scores=scores)
    assert recorder.texts[1:] == ["x|aaaa|cccc"]


async def test_the_same_details_twice_are_dropped_from_both(recording_client):
    recorder = recording_client(window(16))
    scores = [{"text": text, "p_yes": p, "kept": True} for text, p in (("aaaa", 0.2), ("bbbb", 0.9))]
    await fuse(recorder, ["x"], ["aaaa", "bbbb"], ["aaaa", "bbbb"], scores=scores)
    assert recorder.texts[1:] == ["x|bbbb|bbbb"]


def test_check_names_the_column_that_the_fallback_needs():
    assert "add `initial: init_caption`" in (Fuse(prompt=PROMPT).check(["context"]) or "")
    assert Fuse(prompt=PROMPT).check(["context", "initial"]) is None
    assert Fuse(prompt=PROMPT, fallback="empty").check(["context"]) is None
