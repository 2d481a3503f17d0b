import pytest

from scalecap.stages.vote import vote

RATED = [
    {"text": "a, b", "kept": True, "remains": "a"},
    {"text": "c", "kept": False, "remains": ""},
    {"text": "d", "kept": True, "remains": "d"},
    {"text": "e", "kept": False, "remains": ""},
]
VERIFIED = [
    {"text": "a, b", "kept": True, "p_yes": 0.8},
    {"text": "c", "kept": True, "p_yes": 0.9, "mass": 0.8},
    {"text": "d", "kept": False, "p_yes": 0.1},
    {"text": "e", "kept": False, "p_yes": 0.2},
]
CHECKS = {"rated": RATED, "verified": VERIFIED}


@pytest.mark.parametrize(("at_least", "kept"), [(None, ["a"]), (2, ["a"]), (1, ["a", "c", "d"])])
def test_enough_checks_keep_a_text(at_least, kept):
    texts, scores = vote(CHECKS, at_least=at_least)
    assert texts == kept
    assert [score["text"] for score in scores] == ["a, b", "c", "d", "e"]
    assert scores[1] == {
        "text": "c",
        "p_yes": 0.9,
        "kept": at_least == 1,
        "remains": "c" if at_least == 1 else "",
        "mass": 0.8,
        "votes": {"rated": False, "verified": True},
    }


def test_what_no_check_read_is_not_checked():
    unchecked = {"text": "a", "kept": False, "p_yes": None, "mass": None, "checked": False}
    refused = {"text": "a", "kept": False, "p_yes": 0.1}
    assert vote({"one": [unchecked], "two": [unchecked]})[1][0]["checked"] is False
    assert "checked" not in vote({"one": [unchecked], "two": [refused]})[1][0]


def test_bad_votes_are_named():
    with pytest.raises(ValueError, match="at_least: expected 1 to 2 or null, got 3"):
        vote(CHECKS, at_least=3)
    with pytest.raises(ValueError, match="rated and verified did not check the same texts"):
        vote({"rated": RATED, "verified": VERIFIED[:2]})
