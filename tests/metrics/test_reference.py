import pytest

from scalecap.metrics.reference import cider, reference

pytest.importorskip("sacrebleu", reason='needs pip install "scalecap[metrics]"')
pytest.importorskip("pycocoevalcap", reason='needs pip install "scalecap[metrics]"')


async def test_an_equal_caption_scores_full():
    measured, captions, references = await reference(
        {"a": "A brown dog runs."}, ["a brown dog runs", "a cat"]
    )
    assert measured["a"]["bleu"] == pytest.approx(100)
    assert measured["a"]["rouge_l"] == 1
    assert measured["a"]["meteor"] > 0.99
    assert captions == [{"caption": "a", "text": "A brown dog runs."}]
    assert references == ["a brown dog runs", "a cat"]


async def test_nothing_in_common_scores_nothing():
    measured, _, _ = await reference({"a": "x y z", "b": ""}, "a brown dog")
    assert measured["a"]["rouge_l"] == measured["a"]["meteor"] == 0
    assert measured["b"]["bleu"] == 0
    with pytest.raises(ValueError, match="no reference"):
        await reference({"a": "b"}, [])
    with pytest.raises(ValueError, match="no reference"):
        await reference({"a": "b"}, [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"expected a reference caption as text, got \{'raw': 'b'\}"):
        await reference({"a": "b"}, [{"raw": "b"}])  # type: ignore[list-item]


async def test_rouge_by_hand():
    measured, _, _ = await reference({"a": "a dog runs"}, "a dog")
    # Precision 2/3, recall 1, F with β = 1.2.
    assert measured["a"]["rouge_l"] == pytest.approx((1 + 1.44) * (2 / 3) / (1 + 1.44 * (2 / 3)))


async def test_cider_prefers_the_right_image():
    captions = ["a dog runs on grass", "two red cars parked", "a bowl of fruit"]
    right = [await reference({"a": text}, [text]) for text in captions]
    mixed = [
        await reference({"a": text}, [other]) for text, other in zip(captions, captions[::-1], strict=True)
    ]
    full, low = cider(right)["a.cider"], cider(mixed)["a.cider"]
    assert full.mean == pytest.approx(10, abs=2.6)
    assert low.mean < full.mean / 2
    assert full.rows == 3


async def test_chinese_is_compared_by_characters():
    measured, _, _ = await reference({"a": "一只狗。", "b": "两只猫。"}, "一只狗在跑。")
    # Precision 3/3, recall 3/5, F with β = 1.2.
    assert measured["a"]["rouge_l"] == pytest.approx((1 + 1.44) * 0.6 / (0.6 + 1.44))
    assert 0 < measured["b"]["rouge_l"] < measured["a"]["rouge_l"]
