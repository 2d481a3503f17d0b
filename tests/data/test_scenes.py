from scalecap.config.settings import DataSettings
from scalecap.data.sources import open_source


def test_the_packaged_sample() -> None:
    source = open_source(DataSettings(source="scenes"))
    rows = list(source)
    assert source.total == len(rows) == 24
    assert source.columns == {"image": "text", "truth": "any"}
    assert rows[0].columns["truth"]["things"]
    assert rows[23].open_image().pixels.size == (336, 336)


def test_generated_scenes_depend_on_the_seed_alone() -> None:
    first = list(open_source(DataSettings(source="scenes", count=5, seed=7)))
    again = list(open_source(DataSettings(source="scenes", count=9, seed=7, limit=5)))
    other = list(open_source(DataSettings(source="scenes", count=5, seed=8)))
    assert [row.columns for row in first] == [row.columns for row in again]
    assert first[3].open_image().hash == again[3].open_image().hash
    assert first[0].columns["image"] != other[0].columns["image"]
    assert len({row.open_image().hash for row in first}) == 5


def test_a_seed_without_a_count_draws_as_many_as_the_sample() -> None:
    source = open_source(DataSettings(source="scenes", seed=3))
    assert source.total == 24
    assert next(iter(source)).columns["image"].startswith("scene-")
