"""Metrics without a model: density, chair, scenes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.metrics.chair import COCO, Chair, Vocabulary
from scalecap.metrics.density import density
from scalecap.metrics.scenes import scene_statements, scenes
from scalecap.scenes.claims import everything, holds
from scalecap.scenes.grammar import sentences
from scalecap.scenes.world import sample, unseen_seed

TRUTH = {
    "ground": "grass",
    "things": [
        {
            "kind": "dog",
            "count": 1,
            "size": "small",
            "place": "on the left",
            "facing": None,
            "next_to": ["tree"],
            "colour": "brown",
            "parts": ["floppy ears", "a black nose"],
        },
        {
            "kind": "tree",
            "count": 2,
            "size": None,
            "place": "in the center",
            "facing": None,
            "next_to": ["dog"],
            "colour": "green",
            "parts": [],
        },
    ],
}


def test_density_by_hand():
    measured = density(
        {"final": "The red dog runs. The dog runs to the red house, and the dog runs to it."},
        {"first": ["A dog."]},
        "A dog.",
    )
    assert measured["final"] == {
        "words": 17,
        "sentences": 2,
        "content": 4,
        "objects": 2,
        "variety": {"count": 8, "of": 17},
        "repetition": {"count": 1, "of": 14},
        "new": 3,
    }
    assert measured["first"]["new"] == 0
    assert "new" not in density({"a": "b"})["a"]
    assert density({"a": "one two three"}, words=2)["a"]["words"] == 2


# Four images with the objects {dog, bus}, worked out by hand after the paper's definition.
@pytest.mark.parametrize(
    ("caption", "mentions", "invented", "found"),
    [
        ("A puppy beside a school bus.", 2, 0, 2),
        ("Two dogs and a cat on a couch.", 3, 2, 1),
        ("A man eats a hot dog.", 2, 2, 0),
        ("A fire-hydrant, hot-dogs, a teddy\nbear.", 3, 3, 0),
        ("Buses, a bus and people; a person waits.", 4, 2, 1),
        ("Nothing to be seen, a catalogue of carpets.", 0, 0, 0),
        ("Train tracks, a railroad track and a train track.", 0, 0, 0),
        ("Trains on the train tracks.", 1, 1, 0),
        ("Polar bears eat hot dogs.", 2, 2, 0),
        ("A pickup truck behind double-decker buses.", 2, 1, 1),
        ("A baseball player on a football field with a tennis ball.", 2, 2, 0),
        ("A baby dog, adult dogs and baby animals.", 2, 0, 1),
        ("A motor bike and a stove top oven.", 2, 2, 0),
    ],
)
async def test_chair_by_hand(recording_client, caption, mentions, invented, found):
    stage, client = Chair(), recording_client(lambda _: "x").client
    measured = (await stage(client, captions={"a": caption}, objects=["Dog", "bus", "lamp"]))["a"]
    assert measured["chair_i"] == {"count": invented, "of": mentions}
    assert measured["chair_s"] == int(invented > 0)
    assert measured["recall"] == {"count": found, "of": 2}  # a lamp can't be found


async def test_chair_knows_cocos_objects_and_a_list_of_ones_own(recording_client, tmp_path):
    lines = [line for line in COCO.read_text().splitlines() if line[0] != "!"]
    assert len(lines) == 80
    names = [line.split(",")[0] for line in lines]
    assert len(set(names)) == 80
    assert {"person", "traffic light", "hair drier", "toothbrush"} <= set(names)
    known = Vocabulary(lines)
    assert [known.name(name) for name in names] == names
    own = tmp_path / "own.txt"
    own.write_text("gadget, doohickey\n", encoding="utf-8-sig")
    assert known.find("Two mice") == ["mouse"]
    stage, client = Chair(vocabulary=str(own)), recording_client(lambda _: "x").client
    measured = await stage(client, captions={"a": "Doohickeys galore"}, objects=["gadget"])
    assert measured["a"]["recall"] == {"count": 1, "of": 1}
    with pytest.raises(ValueError, match=r"can't read .*absent.txt"):
        Chair(vocabulary=str(tmp_path / "absent.txt"))
    own.write_text(" ,\n!gadgets\n")
    with pytest.raises(ValueError, match="lists no objects"):
        Chair(vocabulary=str(own))


@pytest.mark.parametrize(
    ("caption", "true", "wrong", "unread"),
    [
        ("", 0, 0, 0),
        ("There is a dog.", 1, 0, 0),
        ("There is a dog. There is a dog.", 1, 0, 0),
        ("There are three trees in the center.", 2, 1, 0),
        ("There is a large dog on the right.", 1, 2, 0),
        ("The scene is on grass. The scene is on snow.", 1, 1, 0),
        ("The dog is next to the tree.", 2, 0, 0),
        ("There is a small cat.", 0, 2, 0),
        ("There is a tree.", 1, 1, 0),
        ("Lorem ipsum.", 0, 0, 1),
    ],
)
def test_facts_are_counted_once_each(caption: str, true: int, wrong: int, unread: int):
    measured = scenes({"it": caption}, TRUTH)["it"]
    assert (measured["true"], measured["wrong"], measured["unread"]["count"]) == (true, wrong, unread)


def test_scenes_by_hand():
    caption = "There is a small dog. There is a cat on the right. It is on snow. Lorem ipsum."
    measured = scenes({"a": caption}, TRUTH, {"b": ["The scene is on grass."]})
    a = measured["a"]
    # dog, small; wrong: cat, right, snow
    assert (a["true"], a["wrong"]) == (2, 3)
    assert a["precision"] == {"count": 2, "of": 5}
    # The ground; the dog, its size, colour, parts, place, neighbour; the trees, colour, place ...
    assert a["recall"] == {"count": 2, "of": 13}
    assert a["f1"] == {"count": 4, "of": 18}
    assert a["chair_i"] == {"count": 1, "of": 2}
    assert a["chair_s"] == {"count": 2, "of": 3}  # "it" is the cat
    assert a["unread"] == {"count": 1, "of": 4}
    assert a["sort"]["size"]["precision"] == {"count": 1, "of": 1}
    assert a["sort"]["position"]["precision"] == {"count": 0, "of": 1}
    assert a["sort"]["ground"]["recall"] == {"count": 0, "of": 1}
    assert measured["b"]["precision"] == {"count": 1, "of": 1}
    assert list(measured) == ["b", "a"]


PARAPHRASES = [
    "There is a small dog on the left.",
    "A small dog can be seen on the left.",
    "I can see a small dog on the left.",
    "The picture shows a small dog on the left.",
    "The dog is small and is on the left.",
    "the   DOG is Small, on the left!",
    "On the left, a small dog.",
    "- a small dog on the left",
]


@pytest.mark.parametrize("text", PARAPHRASES)
def test_paraphrases_state_the_same_facts(text):
    measured = scenes({"a": text}, TRUTH)["a"]
    assert (measured["true"], measured["wrong"], measured["unread"]["count"]) == (3, 0, 0)


@given(st.text())
def test_hostile_captions_are_counted_not_raised(text):
    measured = scenes({"a": text}, TRUTH)["a"]
    assert measured["unread"]["of"] == len(sentences(text))
    assert measured["precision"]["of"] == measured["true"] + measured["wrong"]


@pytest.mark.parametrize("index", range(20))
def test_every_fact_is_true_and_labelled_statements_are_right(index):
    truth = json.loads(json.dumps(sample(unseen_seed(5, index)).truth()))
    assert all(fact.true for fact in everything(truth))
    statements = scene_statements(truth, pairs=3)
    assert [each["label"] for each in statements] == [True, False] * 3
    for each in statements:
        claims_by_sentence = sentences(each["text"])
        assert all(claims_by_sentence)
        assert all(holds(claim, truth) for claims in claims_by_sentence for claim in claims) is each["label"]
    assert statements == scene_statements(truth, pairs=3)
    assert statements != scene_statements(truth, pairs=3, seed=1)
