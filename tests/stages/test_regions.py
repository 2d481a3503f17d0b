"""crop and tiles: parts of the image, by boxes that a model gave."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from scalecap.engines.base import Image
from scalecap.stages.crop import MIN_SIDE, Crop, widened
from scalecap.stages.regions import records
from scalecap.stages.tiles import Tiles, parts


def an_image(width=400, height=200):
    pixels = Pillow.new("RGB", (width, height))
    pixels.putdata([(x % 256, y % 256, x // 256) for y in range(height) for x in range(width)])
    return Image.of(pixels)


async def test_a_box_is_cut_out_of_the_image(recording_client):
    recorder = recording_client(lambda _: "")
    (region,) = await Crop(margin=0)(recorder.client, boxes=[{"box": [250, 500, 500, 750]}], image=an_image())
    assert region.box == (100, 100, 200, 150)
    assert region.image.pixels.size == (100, 50)
    assert region.image.pixels.getpixel((0, 0)) == (100, 100, 0)
    assert records([region]) == [{"box": [100, 100, 200, 150], "of": [400, 200]}]
    # Equal pixels are one image, whatever they were cut from.
    (twin,) = await Crop(margin=0, scale=None)(
        recorder.client, boxes=[[100, 100, 200, 150]], image=an_image()
    )
    assert twin.image.hash == region.image.hash
    (wider,) = await Crop(margin=0.5)(recorder.client, boxes=[[250, 500, 500, 750]], image=an_image())
    assert wider.box == (50, 75, 250, 175)
    assert (recorder.flags, recorder.requests) == ([], [])


@pytest.mark.parametrize(
    ("box", "flag"),
    [
        (None, None),
        ({"box": None}, None),
        ({}, None),
        ([0, 0, 1000, 1000], None),
        ([0, 0, 1001, 500], "outside"),
        ([-1, 0, 10, 10], "outside"),
        ([1200, 1200, 1300, 1300], "outside"),
        ([0, 0, 10**400, 500], "outside"),
        ([10, 10, 10, 20], "unreadable_box"),
        ([20, 10, 10, 20], "unreadable_box"),
        ([1, 2, 3], "unreadable_box"),
        ([1, 2, 3, "4"], "unreadable_box"),
        ([1, 2, 3, float("nan")], "unreadable_box"),
        ([False, False, True, True], "unreadable_box"),
        ("left", "unreadable_box"),
        (7, "unreadable_box"),
    ],
)
async def test_an_invalid_box_is_flagged_and_not_guessed(recording_client, box, flag):
    recorder = recording_client(lambda _: "")
    boxes = [box, [0, 0, 500, 500]]
    found = await Crop()(recorder.client, boxes=boxes, image=an_image())
    assert [region is None for region in found] == [box != [0, 0, 1000, 1000], False]
    assert recorder.flags == ([flag] if flag else [])
    assert records(found)[1] == {"box": [0, 0, 250, 125], "of": [400, 200]}


async def test_a_box_up_to_the_border_is_inside_whatever_the_images_size(recording_client):
    for side in (2007, 4031, 5555):  # 1000 * (2007 / 1000) is above 2007
        recorder = recording_client(lambda _: "")
        pixels = Image.of(Pillow.new("RGB", (side, 40)))
        (region,) = await Crop(margin=0)(recorder.client, boxes=[[500, 0, 1000, 1000]], image=pixels)
        assert (region.box[2:], recorder.flags) == ((side, 40), [])


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.floats(0, 3))
def test_a_crop_is_inside_and_large_enough(most, first, second, margin):
    low, high = sorted((first * most, second * most))
    start, end = widened(low, high, margin, most)
    assert 0 <= start < end <= most
    assert start <= low
    assert high <= end
    assert end - start >= min(MIN_SIDE, most)


async def test_tiles_cover_the_image(recording_client):
    found = await Tiles(rows=2, columns=3, overlap=0.5)(
        recording_client(lambda _: "").client, image=an_image()
    )
    assert [region.box for region in found] == [
        (left, top, left + 200, bottom) for top, bottom in ((0, 133), (67, 200)) for left in (0, 100, 200)
    ]
    assert parts(2, 3, 0.2) == [(0, 2)]


@given(st.integers(1, 200), st.integers(1, 9), st.floats(0, 0.99))
def test_parts_leave_nothing_out(length, count, overlap):
    found = parts(length, count, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(start < end <= length for start, end in found)
    assert all(later[0] <= before[1] for before, later in pairwise(found))


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (Crop, {"scale": 0}, "scale: 0 must be above 0"),
        (Crop, {"margin": -1}, "margin: -1 must be 0 or more"),
        (Tiles, {"rows": 0}, "rows: expected at least 1, got 0"),
        (Tiles, {"overlap": 1}, "overlap: 1 must be a share"),
    ],
)
def test_invalid_settings_are_refused(stage, settings, message):
    with pytest.raises(ValueError, match=message):
        stage(**settings)
