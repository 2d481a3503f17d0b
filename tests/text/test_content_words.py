"""Content words, by the tagger that comes with TextBlob."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalecap.text.content_words import content_words, nouns
from scalecap.text.segmentation import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a large tractor at the bottom.", "large tractor bottom"),
        ("The two crabs are orange and have many legs.", "two crabs orange many legs"),
        ("A sign isn't red; the dog's tail doesn’t wag quickly", "sign red dog's tail wag quickly"),
        ("It is next to 3.5 of them, which could be his", "next 3.5"),
        ("Wow, Berlin!", "Wow Berlin"),
        ("一只狗在草地上。", "一只狗在草地上"),
        ("... , !", ""),
        ("", ""),
    ],
)
def test_content_words(text: str, expected: str) -> None:
    assert " ".join(text[start:end] for start, end in content_words(text)) == expected


@given(st.text(max_size=60))
def test_any_text_can_be_tagged(text: str) -> None:
    assert set(content_words(text)) <= set(words(text))


def test_nouns_are_listed_once():
    assert nouns("Two dogs, a dog and the people near a glass of berries on red grass; Berlin's gas.") == {
        *("dog", "person", "glass", "berry", "grass", "berlin", "gas"),
    }
