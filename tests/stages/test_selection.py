"""split_each, likelihood, best_of, choose: rate drafts, and take one of several."""

import math

import pytest

from scalecap.engines.base import Chosen, Scored, Token
from scalecap.stages.best_of import BestOf
from scalecap.stages.choose import Choose
from scalecap.stages.likelihood import Likelihood
from scalecap.stages.scores import unchecked_score
from scalecap.stages.split_each import split_each
from scalecap.text.templates import Template


def test_sentences_have_the_index_of_their_text():
    texts = ["A dog. It runs.", "", "A cat."]
    assert split_each(texts) == (["A dog.", "It runs.", "A cat."], [0, 0, 2])
    assert split_each(["Dr. No. A cat."], rule="seed") == (["Dr.", "No.", "A cat."], [0, 0, 0])


async def test_a_likelihood_is_the_product_over_tokens(recording_client, image):
    recorder = recording_client(lambda request: -0.5)
    texts, scores = await Likelihood(prompt=Template("Name one."), threshold=0.5)(
        recorder.client, texts=["Dog", "Red dog", ""], image=image
    )
    assert texts == ["Dog", ""]
    assert [score["likelihood"] for score in scores] == pytest.approx([math.exp(-0.5), math.exp(-1), 1])
    assert [score["kept"] for score in scores] == [True, False, True]
    assert all(request.prompt.image == image for request in recorder.requests)
    assert (recorder.texts[0], recorder.requests[0].text) == ("Name one.", "Dog")


async def test_a_likelihood_needs_log_probabilities(recording_client, image):
    recorder = recording_client(lambda _: Scored((Token(0, 3, math.nan, 4.0),)))
    with pytest.raises(ValueError, match="raw logits only"):
        await Likelihood(prompt=Template("Name one."))(recorder.client, texts=["Dog"], image=image)


def p(*values):
    return [{"text": "x", "p_yes": value, "kept": True} for value in values]


@pytest.mark.parametrize(
    ("scores", "about", "best", "means"),
    [
        (p(0.1, 0.9, 0.9), None, "b", [0.1, 0.9, 0.9]),
        (p(0.2, 0.8, 0.6), [0, 0, 2], "c", [0.5, None, 0.6]),
        (
            [{"likelihood": 0.1, "kept": True}, {"likelihood": 0.3, "kept": False}],
            [0, 2],
            "c",
            [0.1, None, 0.3],
        ),
        ([{"p_yes": None, "kept": True}, {"p_yes": None, "kept": False}], [1, 1], "b", [None, 0.5, None]),
        (p(0.0), [1], "b", [None, 0.0, None]),
    ],
)
async def test_the_best_has_the_highest_mean(recording_client, scores, about, best, means):
    recorder = recording_client(lambda _: "")
    chosen, ratings = await BestOf()(recorder.client, texts=["a", "b", "c"], scores=scores, about=about)
    assert chosen == best
    assert [each["score"] for each in ratings] == pytest.approx(means)
    assert [each["text"] for each in ratings if each["taken"]] == [best]
    assert (recorder.flags, recorder.requests) == ([], [])


async def test_what_was_not_checked_rates_nothing(recording_client):
    recorder = recording_client(lambda _: "")
    scores = [*p(0.6), unchecked_score("b"), *p(0.8), unchecked_score("d")]
    chosen, ranks = await BestOf()(recorder.client, texts=["a", "b", "c"], scores=scores, about=[0, 1, 2, 2])
    assert (chosen, [each["score"] for each in ranks]) == ("c", [0.6, None, 0.8])
    assert await BestOf()(recorder.client, texts=["a"], scores=[unchecked_score("a")])
    assert recorder.flags == ["unscored"]


async def test_texts_that_nothing_rates(recording_client):
    recorder = recording_client(lambda _: "")
    assert (await BestOf()(recorder.client, texts=["a", "b"], scores=[], about=[]))[0] == "a"
    assert recorder.flags == ["unscored"]
    assert await BestOf()(recorder.client, texts=[], scores=[], about=[]) == ("", [])
    with pytest.raises(ValueError, match="got 2 positions for 1 scores"):
        await BestOf()(recorder.client, texts=["a", "b"], scores=p(0.5))


async def test_one_of_several_statements_is_taken(recording_client, image):
    replies = {"red": (0.2, 0.7, 0.1), "big": (0.4, 0.35, 0.25), "none": (0.3, 0.7)}
    recorder = recording_client(lambda r: Chosen(next(v for k, v in replies.items() if k in r.prompt.text)))
    texts = ["It is red.", "It is big.", "It is blue.", "It is small.", "It is none.", "It is red."]
    kept, scores = await Choose(prompt=Template("Which?\n{{ options }}"), threshold=0.3)(
        recorder.client, texts=texts, about=[0, 2, 0, 2, 5, 0], image=image
    )
    assert recorder.texts[0] == "Which?\nA. It is red.\nB. It is blue.\nC. None of these."
    assert recorder.requests[0].options == ("A", "B", "C")
    assert recorder.requests[0].prompt.image == image
    assert kept == ["It is blue.", "It is big."]
    assert [(each["text"], each["p_yes"], each["kept"], each["about"]) for each in scores] == [
        ("It is blue.", 0.7, True, 0),
        ("It is big.", 0.4, True, 2),
        ("It is none.", 0.3, False, 5),
    ]
    assert scores[2]["options"] == [{"text": "It is none.", "p": 0.3}, {"text": "None of these.", "p": 0.7}]


async def test_statements_are_compared_by_their_own_checks(recording_client, image):
    p = {"red": 0.8, "blue": 0.9, "big": 0.4, "small": 0.0}
    recorder = recording_client(lambda r: p[r.prompt.text.split()[1]])
    stage = Choose(statement_prompt=Template("Sure? {{ text }}"))
    texts = ["red", "blue", "big", "small", "red"]
    kept, scores = await stage(recorder.client, texts=texts, about=[0, 0, 1, 1, 0], image=image)
    assert kept == ["blue"]
    assert [(each["text"], each["p_yes"], each["kept"]) for each in scores] == [
        ("blue", 0.9, True),
        ("big", 0.4, False),
    ]
    assert scores[0]["options"] == [{"text": "red", "p": 0.8}, {"text": "blue", "p": 0.9}]
    assert len(recorder.requests) == 4
    with pytest.raises(ValueError, match="expected either `prompt` or `statement_prompt`"):
        Choose()


async def test_a_choice_that_was_not_answered(recording_client, image):
    recorder = recording_client(lambda _: Chosen((0.0, 0.0), 0.0))
    kept, (score,) = await Choose(prompt=Template("{{ options }}"), threshold=0)(
        recorder.client, texts=["It is red."], about=[0], image=image
    )
    assert (kept, score["p_yes"], score["kept"], recorder.flags) == ([], None, False, ["unanswered"])


async def test_a_probability_of_zero_is_an_answer(recording_client, image):
    recorder = recording_client(lambda _: Chosen((0.0, 1.0), 1.0))  # yes is not among the likeliest tokens
    stage = Choose(statement_prompt=Template("Sure? {{ text }}"))
    kept, (score,) = await stage(recorder.client, texts=["a", "b"], about=[0, 0], image=image)
    assert (kept, score["p_yes"], score["kept"], recorder.flags) == ([], 0.0, False, [])


async def test_more_statements_than_letters_are_cut(recording_client, image):
    recorder = recording_client(lambda _: "A")
    stage = Choose(prompt=Template("{{ options }}"))
    kept, _ = await stage(
        recorder.client, texts=[f"It is {n}." for n in range(40)], about=[0] * 40, image=image
    )
    assert (kept, recorder.flags, len(recorder.requests[0].options)) == (["It is 0."], ["shortened"], 26)
    assert await stage(recorder.client, texts=[], about=[], image=image) == ([], [])
