import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.scenes.claims import Claim, facts, falsify, holds
from scalecap.scenes.grammar import describe, introduce, read, sentences, set_scene
from scalecap.scenes.kinds import GROUNDS, KINDS
from scalecap.scenes.lessons import Curriculum, claim_all, claim_place, statements
from scalecap.scenes.world import sample

SCENES = range(200)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_back_from_what_is_said_of_it(kind: str):
    for count in (1, 2, 3):
        size = "small" if count == 1 else None
        claim = Claim(kind=kind, count=count, size=size, place="on the left")
        assert read(introduce(claim, random.Random(count))) == [claim]


@pytest.mark.parametrize("seed", SCENES)
def test_true_claims_are_read_back_as_true_facts_only(seed: int):
    rng, truth = random.Random(seed), sample(seed).truth()
    for thing in truth["things"]:
        for claim in (claim_all(thing), claim_place(thing)):
            (again,) = read(describe(claim))
            assert holds(again, truth), describe(claim)
            assert len(facts(again, truth)) >= len(facts(claim, truth)) - 1  # "the cat" tells no count
    (ground,) = read(set_scene(Claim(ground=truth["ground"]), rng))
    assert ground.ground == truth["ground"]


@pytest.mark.parametrize("seed", SCENES)
def test_a_false_claim_is_false(seed: int):
    rng, truth = random.Random(seed), sample(seed).truth()
    for thing in truth["things"]:
        assert not holds(falsify(claim_all(thing), truth, rng), truth)
        assert not holds(falsify(claim_place(thing), truth, rng), truth)
    for share in (Curriculum(0, 0), Curriculum(0, 1), Curriculum(1, 0)):
        true, false = statements(truth, rng, share)
        assert true != false


def test_pronouns_mean_the_thing_before():
    claims = read("There is a dog. It is brown and is facing left. They are small.")
    assert [claim.kind for claim in claims] == ["dog", "dog", "dog"]
    assert (claims[1].colour, claims[1].facing, claims[2].size) == ("brown", "left", "small")


def test_what_the_world_does_not_know_is_unread():
    assert sentences("A man in a suit. 天空很蓝。 <b>NaN</b>\n\n!!!") == [[], []]


@given(
    st.text()
    | st.lists(st.sampled_from(["a", "two", "the", "dog", "next to", ".", "and", *GROUNDS])).map(" ".join)
)
def test_any_text_is_read_without_an_error(text: str):
    for claim in read(text):
        facts(claim, sample(1).truth())
