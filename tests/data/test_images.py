import base64
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import an_image, encoded
from PIL import Image as Pillow

from scalecap.data.images import image_stamp, open_image, read_image
from scalecap.rows import RowError


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width×height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND", b"")


def halves(left: Any, right: Any, size: tuple[int, int] = (60, 40)) -> Pillow.Image:
    image = Pillow.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, size[0], size[1]))
    return image


# --- what a cell may hold ---


def test_every_kind_of_cell_gives_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(an_image())
    cells = [
        str(path),
        path,
        an_image(),
        bytearray(an_image()),
        {"bytes": an_image(), "path": "elsewhere.png"},
        {"bytes": an_image(), "path": None},
        {"bytes": None, "path": str(path)},
        {"path": str(path)},
        Pillow.new("RGB", (40, 30), "red"),
    ]
    opened = [open_image(cell) for cell in cells]
    assert len({image.hash for image in opened}) == 1
    assert opened[0].pixels.mode == "RGB"
    assert opened[0].pixels.size == (40, 30)
    assert opened[0].pixels.getpixel((5, 5)) == (255, 0, 0)


def test_the_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(an_image())
    cells = (an_image(), {"bytes": an_image(), "path": None}, tmp_path / "a.png", "a.png", {"path": "a.png"})
    for cell in cells:
        assert read_image(cell, folders=[tmp_path]) == an_image()
    held = Pillow.open(io.BytesIO(read_image(Pillow.new("RGB", (3, 2), "red"))))
    assert (held.format, held.size) == ("PNG", (3, 2))
    with pytest.raises(RowError, match="expected the path or bytes"):
        read_image(None)
    with pytest.raises(RowError, match="is a URL"):
        read_image("https://host/a.png")


def test_the_hash_depends_on_pixels_and_shape() -> None:
    red = open_image(an_image())
    assert red.hash != open_image(an_image("blue")).hash
    assert red.hash != open_image(an_image(size=(30, 40))).hash
    assert red.hash == open_image(an_image(format="BMP")).hash


def test_relative_paths_are_looked_for_in_order(tmp_path: Path) -> None:
    for folder, color in (("a", "red"), ("b", "blue")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(an_image(color))
    (tmp_path / "b" / "only.png").write_bytes(an_image("lime"))
    folders = [tmp_path / "a", tmp_path / "b"]
    assert open_image("x.png", folders=folders).pixels.getpixel((0, 0)) == (255, 0, 0)
    assert open_image("only.png", folders=folders).pixels.getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("name", ["my photo (1).png", "Фото 写真 é.png", "a'b\"c#%20.png"])
def test_names_with_spaces_and_non_latin_letters(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(an_image())
    assert open_image(name, folders=[tmp_path]).pixels.size == (40, 30)


# --- what comes out ---


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (an_image(100, mode="L"), (100, 100, 100)),
        (an_image(1, mode="1"), (255, 255, 255)),
        (an_image((100, 128), mode="LA"), (177, 177, 177)),
        (an_image((255, 0, 0, 0), mode="RGBA"), (255, 255, 255)),
        (an_image((255, 0, 0, 255), mode="RGBA"), (255, 0, 0)),
        (an_image((10, 20, 30), transparency=(10, 20, 30)), (255, 255, 255)),
        (encoded(Pillow.new("RGB", (40, 30), (0, 0, 255)).quantize(4)), (0, 0, 255)),
        (encoded(Pillow.new("P", (40, 30), 0), transparency=0), (255, 255, 255)),
        (an_image((0, 255, 255, 0), mode="CMYK", format="TIFF"), (255, 0, 0)),
        (an_image(0.5, mode="F", format="TIFF"), (128, 128, 128)),
        (an_image(255.0, mode="F", format="TIFF"), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(content: bytes, expected: tuple[int, int, int]) -> None:
    pixels = open_image(content).pixels
    assert pixels.mode == "RGB"
    assert pixels.getpixel((20, 20)) == expected


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(format: str) -> None:
    ramp = np.array([[0, 257, 12800, 32768, 65535] * 8] * 40, dtype=np.uint16)
    pixels = open_image(encoded(Pillow.fromarray(ramp), format=format)).pixels
    assert [pixels.getpixel((x, 0)) for x in range(5)] == [(v, v, v) for v in (0, 1, 50, 128, 255)]


def test_32_bit_values_are_scaled_by_their_maximum() -> None:
    values = np.array([[-5, 0, 400_000, 2_000_000] * 10] * 40, dtype=np.int32)
    pixels = open_image(encoded(Pillow.fromarray(values), format="TIFF")).pixels
    assert [pixels.getpixel((x, 0))[0] for x in range(4)] == [0, 0, 51, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [
        (1, (60, 40), (5, 20)),
        (2, (60, 40), (55, 20)),
        (3, (60, 40), (55, 20)),
        (5, (40, 60), (20, 5)),
        (6, (40, 60), (20, 5)),
        (8, (40, 60), (20, 55)),
    ],
)
def test_exif_orientation_is_applied(
    format: str, orientation: int, size: tuple[int, int], red: tuple[int, int]
) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    pixels = open_image(encoded(halves("red", "blue"), format=format, exif=exif)).pixels
    assert pixels.size == size
    r, _, b = pixels.getpixel(red)
    assert r > 200
    assert b < 60


def test_an_image_with_broken_exif_is_still_read() -> None:
    content = an_image(format="JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage")
    assert open_image(content).pixels.size == (40, 30)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(format: str) -> None:
    frames = [Pillow.new("RGB", (40, 30), color) for color in ("red", "blue", "lime")]
    content = encoded(frames[0], format=format, save_all=True, append_images=frames[1:], lossless=True)
    assert open_image(content).pixels.getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 1), (28, 28)),
        ((2, 40), (28, 560)),
        ((20000, 30), (20000, 200)),
        ((30, 20000), (200, 20000)),
        ((40000, 3), (20000, 200)),
        ((3000, 30), (3000, 30)),
        ((500, 1), (3000, 30)),
    ],
)
def test_thin_and_tiny_images_fit_every_processor(size: tuple[int, int], expected: tuple[int, int]) -> None:
    pixels = open_image(an_image(size=size)).pixels
    assert pixels.size == expected
    assert pixels.getpixel((0, 0)) == (255, 0, 0)


def test_padding_is_white_below() -> None:
    pixels = open_image(an_image(size=(20000, 30))).pixels
    assert pixels.getpixel((19999, 29)) == (255, 0, 0)
    assert pixels.getpixel((19999, 30)) == (255, 255, 255)


# --- what goes wrong ---

NOISE = Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (b"", "empty_file", "0 bytes"),
        (b"this is no image\n", "unreadable_image", "not an image"),
        (encoded(NOISE, format="JPEG")[:2000], "truncated_image", "truncated"),
        (encoded(NOISE)[:2000], "truncated_image", "truncated"),
        (encoded(NOISE, format="WEBP")[:200], "unreadable_image", "bad.png"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "unreadable_image", "bad.png"),
        (png_bomb(60_000, 60_000), "too_large", "pixel"),
        (png_bomb(10_000, 10_000), "too_large", "100000000|10000×10000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unreadable_image", "not an image"),
    ],
    ids=["zero", "text", "cut jpeg", "cut png", "cut webp", "junk", "bomb", "half a bomb", "eps"],
)
def test_bad_files_name_the_file_and_the_kind(tmp_path: Path, content: bytes, kind: str, words: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(RowError, match=words) as caught:
        open_image("bad.png", folders=[tmp_path])
    assert caught.value.kind == kind
    assert "bad.png" in str(caught.value)


@pytest.mark.parametrize("cut", range(0, 3000, 97))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_a_row_error_or_an_image(format: str, cut: int) -> None:
    content = encoded(NOISE, format=format)
    try:
        opened = open_image(content[:cut])
    except RowError:
        return
    assert opened.pixels.size == (64, 64)


@pytest.mark.parametrize(
    ("cell", "kind", "words"),
    [
        ("nowhere.png", "missing_file", "no such file: '.*/nowhere.png'"),
        ("/nowhere/at/all.png", "missing_file", "no such file: '/nowhere/at/all.png'"),
        (".", "unreadable_image", "is a folder"),
        ("/dev/null", "unreadable_image", "not a file"),
        ("a\0b", "missing_file", "no such file"),
        ("x" * 5000, "missing_file", "can't be looked up"),
        ("", "bad_cell", "nothing"),
        (None, "bad_cell", "nothing"),
        (7, "bad_cell", "int: 7"),
        (["a.png", "b.png"], "bad_cell", "list"),
        ({"url": "x"}, "bad_cell", "dict"),
        ({"bytes": None, "path": None}, "bad_cell", "nothing"),
        (b"", "empty_file", "0 bytes"),
        ("https://example.com/a.png", "url_refused", "data.allow_urls=true"),
        ({"bytes": None, "path": "http://example.com/a.png"}, "url_refused", "data.allow_urls=true"),
        ("data:image/png;base64,AAAA", "unreadable_image", "not an image"),
    ],
)
def test_bad_cells(tmp_path: Path, cell: Any, kind: str, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        open_image(cell, folders=[tmp_path])
    assert caught.value.kind == kind


def test_unreadable_names_are_not_printed_at_length() -> None:
    with pytest.raises(RowError) as caught:
        open_image("data:" + "A" * 100_000)
    assert len(str(caught.value)) < 400


# --- URLs ---


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("red.png") else 404)
        self.end_headers()
        self.wfile.write(an_image())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Pages) as pages:
        thread = threading.Thread(target=pages.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{pages.server_port}"
        pages.shutdown()
        thread.join()


def test_urls_are_fetched_when_allowed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert open_image(f"{server}/é red.png", allow_urls=True).pixels.size == (40, 30)
    with pytest.raises(RowError, match="404") as caught:
        open_image(f"{server}/none.png", allow_urls=True)
    assert caught.value.kind == "url_failed"
    monkeypatch.setattr("scalecap.data.images.MAX_URL_BYTES", 10)
    with pytest.raises(RowError, match="sends more than") as caught:
        open_image(f"{server}/red.png", allow_urls=True)
    assert caught.value.kind == "too_large"


def test_data_urls_are_read_when_allowed() -> None:
    url = "data:image/png;base64," + base64.b64encode(an_image()).decode()
    assert open_image(url, allow_urls=True).pixels.size == (40, 30)
    assert image_stamp(url) != image_stamp(url[:-4])


def test_files_are_not_read_by_url() -> None:
    with pytest.raises(RowError, match="only http, https and data"):
        open_image("file:///etc/hostname", allow_urls=True)
