import pytest

from scalecap.stages.group_details import chain_checks, group_details


def score(text, kept=True, **more):
    return {"text": text, "kept": kept, **more}


def about(name, sentence, position=False):
    return {"object": name, "sentence": sentence, "position": position}


ABOUT = [about("cat", 0), about("tree", 1), about("cat", 0, True), about("tree", 1, True)]


def test_details_are_grouped_by_sentence():
    checks = {
        "first": [
            score("a", p_yes=0.9),
            score("b", False, p_yes=0.2),
            score("c", p_yes=0.8),
            score("d", p_yes=0.7),
        ]
    }
    blocks, lines = group_details(["A cat.", "A tree.", "Rain."], ABOUT, checks)
    assert blocks == [
        {
            "sentence": "A cat.",
            "details": [
                {"object": "cat", "position": False, "text": "a", "p_yes": 0.9},
                {"object": "cat", "position": True, "text": "c", "p_yes": 0.8},
            ],
        },
        {
            "sentence": "A tree.",
            "details": [{"object": "tree", "position": True, "text": "d", "p_yes": 0.7}],
        },
        {"sentence": "Rain.", "details": []},
    ]
    assert lines == [
        {"text": "Sentence: A cat.", "p_yes": None},
        {"text": "Details about cat: a", "p_yes": 0.9},
        {"text": "Details about the position of cat: c", "p_yes": 0.8},
        {"text": "Sentence: A tree.", "p_yes": None},
        {"text": "Details about the position of tree: d", "p_yes": 0.7},
    ]


def test_a_second_check_read_what_the_first_left():
    rated = [score("a, b", remains="a"), score("c", False, remains=""), score("d, e", remains="d, e")]
    verified = [score("a", False, p_yes=0.1), score("d, e", p_yes=0.9)]
    assert chain_checks([rated, verified]) == [None, None, {"text": "d, e", "p_yes": 0.9}]
    # The probability of an earlier check stays if the last has none.
    assert chain_checks([[score("a, b", p_yes=0.7)], [score("a, b", remains="a")]]) == [
        {"text": "a", "p_yes": 0.7}
    ]


def test_checks_that_are_not_consecutive_are_an_error():
    with pytest.raises(ValueError, match="kept 1 texts and the next one read 2"):
        chain_checks([[score("a"), score("b", False)], [score("a"), score("b")]])
    with pytest.raises(ValueError, match="4 questions and 1 checked texts"):
        group_details(["A cat."], ABOUT, {"first": [score("a")]})
