"""Means and bootstrap intervals."""

import random

import pytest

from scalecap import stats as intervals
from scalecap.stats import Mean, difference, escaped, is_part, mean, measures, parts


def test_the_numbers_of_a_metric_column_have_dotted_names():
    value = {"words": 3, "chair": {"count": 1, "of": 4}, "kinds": {"colour": 0.5, "size": None}, "note": "x"}
    assert list(measures("m", value)) == [
        ("m.words", (3.0, 1.0)),
        ("m.chair", (1.0, 4.0)),
        ("m.kinds.colour", (0.5, 1.0)),
    ]
    assert list(measures("m", 2)) == [("m", (2.0, 1.0))]
    assert list(measures("m", None)) == []


def test_a_dot_in_a_name_is_not_a_separator():
    value = {"gpt-4.1": {"kind.x": {"a": 1}, "count": 2, "of": 3}}
    names = [name for name, _ in measures("m", value)]
    assert names == [r"m.gpt-4\.1.kind\.x.a", r"m.gpt-4\.1.count", r"m.gpt-4\.1.of"]
    assert [parts(name) for name in names] == [
        ["m", "gpt-4.1", "kind.x", "a"],
        ["m", "gpt-4.1", "count"],
        ["m", "gpt-4.1", "of"],
    ]
    assert list(map(is_part, names)) == [True, False, False]
    assert [parts(escaped(name)) for name in ("", ".", "\\", "a\\.", ".\\")] == [
        [""],
        ["."],
        ["\\"],
        ["a\\."],
        [".\\"],
    ]


def test_a_share_is_pooled_over_rows():
    found = mean([(1, 1), (0, 9)])
    assert found is not None
    assert (found.mean, found.rows) == (0.1, 2)
    assert 0 <= found.low <= 0.1 <= found.high <= 1


@pytest.mark.parametrize("pairs", [[], [(0, 0)], [(0, 0), (0, 0)]])
def test_nothing_to_divide_by_has_no_mean(pairs: list[tuple[float, float]]):
    assert mean(pairs) is None


def test_the_interval_holds_the_true_mean_95_times_in_100():
    dice = random.Random(1)
    held = 0
    for _ in range(200):
        found = mean([(dice.gauss(5, 2), 1) for _ in range(60)])
        assert found is not None
        held += found.low <= 5 <= found.high
    assert 180 <= held <= 198


def test_pairing_narrows_a_difference():
    dice = random.Random(2)
    baseline = [(dice.gauss(0, 10), 1.0) for _ in range(100)]
    better = [(value + dice.gauss(1, 0.5), 1.0) for value, _ in baseline]
    found = difference(better, baseline)
    assert found is not None
    assert 0.8 < found.low < found.mean < found.high < 1.2


@pytest.mark.parametrize("pooled", [False, True])
def test_the_interval_of_many_rows_nears_the_bootstrap(monkeypatch: pytest.MonkeyPatch, pooled: bool):
    dice = random.Random(3)
    pairs = [(dice.random(), float(dice.randint(1, 5)) if pooled else 1.0) for _ in range(1500)]
    assert len(pairs) < intervals.NORMAL_FROM_ROWS
    drawn = mean(pairs), difference(pairs, pairs[::-1])
    monkeypatch.setattr(intervals, "NORMAL_FROM_ROWS", 1)
    normal = mean(pairs), difference(pairs, pairs[::-1])
    for one, other in zip(drawn, normal, strict=True):
        assert one is not None
        assert other is not None
        assert other.mean == one.mean
        width = one.high - one.low
        assert other.low == pytest.approx(one.low, abs=0.1 * width)
        assert other.high == pytest.approx(one.high, abs=0.1 * width)


def test_the_same_rows_give_the_same_interval():
    pairs = [(float(n % 7), 1.0) for n in range(50)]
    assert mean(pairs) == mean(pairs)


@pytest.mark.parametrize("rows", [0, 1, 1_999, 2_000, 2_001, 5_000])
@pytest.mark.parametrize("offset", [0, 1e6])
def test_a_mean_of_pairs_one_by_one_is_that_of_all_together(rows: int, offset: float):
    dice = random.Random(rows)
    pairs = [(offset + dice.random(), float(dice.randrange(3))) for _ in range(rows)]
    running = Mean()
    for pair in pairs:
        running.add(pair)
    found, wanted = running.interval(), mean(pairs)
    assert (found is None) == (wanted is None)
    if found and wanted:
        assert found == pytest.approx(wanted, rel=1e-9)


def test_a_mean_of_equal_numbers_has_no_width():
    running = Mean()
    for _ in range(10_000):
        running.add((0.1, 1.0))
    found = running.interval()
    assert found is not None
    assert found == pytest.approx((0.1, 0.1, 0.1, 10_000))
