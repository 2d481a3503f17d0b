import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.scenes.claims import Claim, facts, falsify, holds
from scalecap.scenes.grammar import describe, introduce, read, sentences, set_scene
from scalecap.scenes.kinds import GROUNDS, KINDS
from scalecap.scenes.statements import (
    DETAIL_WEIGHTS,
    Curriculum,
    alternatives,
    claim_all,
    claim_of,
    claim_place,
    statements,
)
from scalecap.scenes.train.texts import atoms
from scalecap.scenes.world import sample

SCENES = range(200)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_back_from_what_is_said_of_it(kind: str):
    for count in (1, 2, 3):
        size = "small" if count == 1 else None
        claim = Claim(kind=kind, count=count, size=size, colour="red", place="on the left")
        assert read(introduce(claim, random.Random(count))) == [claim]


@pytest.mark.parametrize("seed", SCENES)
def test_true_claims_are_read_back_as_true_facts_only(seed: int):
    rng, truth = random.Random(seed), sample(seed).truth()
    for thing in truth["things"]:
        for claim in (claim_all(thing), claim_place(thing), claim_of(thing, "size", "colour", "place")):
            (again,) = read(describe(claim)) if claim != claim_of(thing) else [claim]
            assert holds(again, truth), describe(claim)
            assert len(facts(again, truth)) >= len(facts(claim, truth)) - 1  # "the cat" states no count
    (ground,) = read(set_scene(Claim(ground=truth["ground"]), rng))
    assert ground.ground == truth["ground"]


@pytest.mark.parametrize("seed", SCENES)
def test_a_false_claim_is_false(seed: int):
    rng, truth = random.Random(seed), sample(seed).truth()
    for thing in truth["things"]:
        assert not holds(falsify(claim_all(thing), truth, rng), truth)
        assert not holds(falsify(claim_place(thing), truth, rng), truth)
    for share in (Curriculum(0, 0), Curriculum(0, 1), Curriculum(1, 0)):
        pair = statements(truth, rng, share)
        assert pair.true != pair.false
        assert pair.sort in {"kind", "ground", "beside", *DETAIL_WEIGHTS}


def test_the_sort_of_a_pair_names_the_changed_field():
    for seed in SCENES:
        pair = statements(sample(seed).truth(), random.Random(seed), Curriculum(0, 1))
        (true,), (false,) = read(pair.true), read(pair.false)
        assert getattr(true, pair.sort) != getattr(false, pair.sort)


@pytest.mark.parametrize("seed", SCENES)
def test_one_of_alternatives_is_true(seed: int):
    truth = sample(seed).truth()
    first, *others = alternatives(truth, random.Random(seed))
    assert all(holds(claim, truth) for claim in read(first))
    assert 1 <= len(others) <= 3
    for other in others:
        assert not all(holds(claim, truth) for claim in read(other))


def test_neighbours_are_named():
    claim = Claim(kind="fox", count=1, facing="left", place="on the left", beside=("cat", "tree"))
    text = "The fox is facing left and is on the left, next to the cat and the tree."
    assert describe(claim) == text
    (again,) = read(text)
    assert again.beside == ("cat", "tree")
    truth = {"ground": "grass", "things": [{"kind": "fox", "count": 1, "parts": [], "next_to": ["cat"]}]}
    relations = [
        fact for fact in facts(Claim(kind="fox", beside=("cat", "tree")), truth) if fact.sort == "relation"
    ]
    assert [(fact.value, fact.true) for fact in relations] == [("cat", True), ("tree", False)]


@pytest.mark.parametrize("seed", SCENES)
def test_atoms_of_a_claim_state_its_facts_and_no_others(seed: int):
    truth = sample(seed).truth()
    for thing in truth["things"]:
        claim = claim_of(thing, "size", "colour", "parts", "facing", "place", "beside")
        atomic = [fact for text in atoms(claim) for each in read(text) for fact in facts(each, truth)]
        assert set(atomic) == set(facts(claim, truth))


def test_pronouns_mean_the_thing_before():
    claims = read("There is a dog. It is brown and is facing left. They are small.")
    assert [claim.kind for claim in claims] == ["dog", "dog", "dog"]
    assert (claims[1].colour, claims[1].facing, claims[2].size) == ("brown", "left", "small")


def test_sentences_outside_the_grammar_are_unread():
    assert sentences("A man in a suit. 天空很蓝。 <b>NaN</b>\n\n!!!") == [[], []]


@given(
    st.text()
    | st.lists(st.sampled_from(["a", "two", "the", "dog", "next to", ".", "and", *GROUNDS])).map(" ".join)
)
def test_any_text_is_read_without_an_error(text: str):
    for claim in read(text):
        facts(claim, sample(1).truth())
