"""A source: `data=colours` makes an image of each colour in `data.args.colours`."""

import io
from collections.abc import Iterator
from functools import partial

from PIL import Image as Pillow

from scalecap.config.settings import DataSettings
from scalecap.data import DataError
from scalecap.data.images import open_image, read_image
from scalecap.data.sources import RowSource
from scalecap.rows import Row
from swatches import COLOURS


def open_colours(data: DataSettings) -> RowSource:
    """A row for each colour; its name is its id. Raises DataError for one that is not known."""
    colours = data.args.get("colours", list(COLOURS))
    if unknown := [colour for colour in colours if colour not in COLOURS]:
        raise DataError(f"data.args.colours: expected some of {', '.join(COLOURS)}, got {', '.join(unknown)}")

    def rows() -> Iterator[Row]:
        for index, colour in enumerate(colours):
            file = io.BytesIO()
            Pillow.new("RGB", (56, 56), COLOURS[colour]).save(file, "PNG")
            opened, read = (partial(each, file.getvalue()) for each in (open_image, read_image))
            yield Row(index, {"image": None, "colour": colour}, opened, read_image=read, id=colour)

    return RowSource({"image": "any", "colour": "text"}, len(colours), rows)
