"""Repeats among sentences written by hand and among those of the embedded world, whose facts are known."""

import random
from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.scenes.careless import careless_caption
from scalecap.scenes.claims import Claim, facts
from scalecap.scenes.grammar import describe
from scalecap.scenes.grammar import sentences as read
from scalecap.scenes.statements import Curriculum, claim_all, claim_place, statements
from scalecap.scenes.world import sample, unseen_seed
from scalecap.stages.deduplicate import Deduplicate, gist
from scalecap.text import segmentation as clauses


async def kept(recording_client, *texts):
    left, repeats = await Deduplicate()(
        recording_client(lambda _: "").client, texts={"a": list(texts[:1]), "b": list(texts[1:])}
    )
    assert sorted([*left, *(each["text"] for each in repeats)]) == sorted(texts)
    assert all(each["by"] in left for each in repeats)
    return left


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["I can see a dog.", "A brown dog is at the left."], ["A brown dog is at the left."]),
        (
            ["There is a brown dog.", "The dog is brown.", "The dog is large."],
            ["There is a brown dog.", "The dog is large."],
        ),
        (["A dog.", "a dog", "A dog."], ["A dog."]),
        (["A dog.", "Two dogs."], ["A dog.", "Two dogs."]),
        (["A dog and a brown cat.", "The dog is brown."], ["A dog and a brown cat.", "The dog is brown."]),
        (["A boy chases a girl.", "A girl chases a boy."], ["A boy chases a girl.", "A girl chases a boy."]),
        (
            ["The cat is at the top.", "The cat is at the bottom."],
            ["The cat is at the top.", "The cat is at the bottom."],
        ),
        *(
            ([one, other], [one, other])
            for one, other in [
                ("The cat is under the table.", "The cat is on the table."),
                ("The dog is in front of the car.", "The dog is behind the car."),
                ("The light is on.", "The light is off."),
                ("A man without a hat.", "A man with a hat."),
                ("The sign is not red.", "The sign is red."),
                ("The sign isn’t red.", "The sign is red."),
                ("There is no dog.", "The dog is not brown."),
                ("A man without a hat.", "There is a hat."),
                ("A teddy bear sits.", "There is a bear."),
                ("A dog house stands there.", "There is a dog."),
                ("There is no brown dog.", "There is no dog."),
                ("She wears a red hat.", "He wears a hat."),
                ("The dog has a long tail.", "It has a tail."),
            ]
        ),
        (["The cat is on the table.", "A cat sits on a small table."], ["A cat sits on a small table."]),
        (["A dog in the picture is brown.", "The dog is brown."], ["A dog in the picture is brown."]),
        (["一只狗。", "一只狗。", "一只猫。"], ["一只狗。", "一只猫。"]),
        (["The picture shows it.", "...", "", ""], ["The picture shows it.", "...", ""]),
        ([], []),
    ],
)
async def test_by_hand(recording_client, texts, left):
    assert await kept(recording_client, *texts) == left


async def test_what_is_known_is_left_out(recording_client):
    stage, client = Deduplicate(), recording_client(lambda _: "").client
    texts = {"new": ["The dog is brown.", "A cat.", "A large dog."]}
    kept, repeats = await stage(client, texts=texts, known=["I can see a brown dog.", "A dog."])
    assert kept == ["A cat.", "A large dog."]
    assert repeats == [{"text": "The dog is brown.", "by": "I can see a brown dog."}]


async def test_without_near_only_equal_texts_are_repeats(recording_client):
    texts = {"a": ["A dog.", "There is a dog.", "A dog.", "A brown dog."]}
    kept, repeats = await Deduplicate(near=False)(
        recording_client(lambda _: "").client, texts=texts, known=["A brown dog."]
    )
    assert kept == ["A dog.", "There is a dog."]
    assert [each["text"] for each in repeats] == ["A dog.", "A brown dog."]


@given(st.lists(st.text(max_size=20), max_size=4))
def test_any_texts(texts):
    for text in texts:
        assert gist(text).within(gist(text))


def stated_facts(text, truth):
    """The facts that a sentence of the world states; a neighbour that it names exists, too."""
    claims = [claim for claims in read(text) for claim in claims]
    claims += [Claim(kind=other) for claim in claims for other in claim.beside]
    return frozenset(fact for claim in claims for fact in facts(claim, truth))


def test_on_labelled_pairs_of_the_world():
    """Of two true sentences, the second states all facts of the first, or it does not."""
    rng, counts = random.Random(0), Counter()
    for index in range(20):
        truth = sample(unseen_seed(5, index)).truth()
        drafts = [careless_caption(truth, rng) for _ in range(3)]
        pool = [text[slice(*span)].strip() for text in drafts for span in clauses.sentences(text)]
        for thing in truth["things"]:
            pool += [describe(claim_all(thing)), describe(claim_place(thing))]
        pool += [statements(truth, rng, Curriculum(0.2, 0.4)).true for _ in range(3)]
        known = {text: stated_facts(text, truth) for text in pool}
        true = [text for text, its in known.items() if its and all(fact.true for fact in its)]
        for one, other in permutations(true, 2):
            counts[known[one] <= known[other], gist(one).within(gist(other))] += 1
    assert counts.total() == 9264
    assert counts[True, True] + counts[True, False] == 653
    assert counts[False, True] <= 3  # dropped though it says more; none when this was written
    assert counts[True, False] <= 40  # repeats that were missed; 31
