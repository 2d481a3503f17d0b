"""What all metrics read of captions: their texts, cut to a length, and their words."""

import pytest

from scalecap.metrics import texts
from scalecap.text.segmentation import word_count


@pytest.mark.parametrize("value", [{"a": "A dog."}, 7, [{"text": "A dog."}]])
def test_what_is_no_text_is_not_scored(value: object) -> None:
    with pytest.raises(ValueError, match=r"column 'a': expected a caption as text, got .*(A dog|7)"):
        list(texts({"a": value}))


@pytest.mark.parametrize(
    ("caption", "words", "of_three"),
    [
        ("", 0, ""),
        ("A dog - two", 4, "A dog -"),
        ("  A  3.5-metre\npole, it's", 4, "  A  3.5-metre\npole,"),
        ("一只狗，在草地上。", 7, "一只狗，"),
        ("「犬」がいる。 A dog", 6, "「犬」がい"),
        ("개 한 마리가 있다.", 4, "개 한 마리가"),
    ],
)
def test_words_are_between_spaces_and_chinese_and_japanese_characters(
    caption: str, words: int, of_three: str
) -> None:
    assert word_count(caption) == words
    assert dict(texts({"a": caption}, 3)) == {"a": of_three}
    assert dict(texts({"a": caption}, words)) == {"a": caption.rstrip()}
