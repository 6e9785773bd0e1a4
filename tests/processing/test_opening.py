"""Image files are opened in six formats, in bounded memory, and with nothing said on the screen."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.processing import opening
from expertflow_jax.processing.opening import open_image

PIXELS = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF", "JPEG", "WEBP"])
def test_the_six_formats(tmp_path, form):
    Image.fromarray(PIXELS).save(tmp_path / "image.png", form)  # the content decides, not the name
    image = open_image(tmp_path / "image.png")
    assert image.size == (48, 32)
    assert image.mode == "RGB"
    if form in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("form", ["EPS", "PPM", "TGA", "ICO", "PDF"])
def test_other_formats_are_not_tried(tmp_path, form):
    Image.fromarray(PIXELS).save(tmp_path / "image.png", form)
    with pytest.raises(InputError, match="not a readable image; want PNG, JPEG") as caught:
        open_image(tmp_path / "image.png")
    assert "\n" not in str(caught.value)


def png(width, height):
    """A PNG file of nothing but zeros of one bit; as large as one likes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8000), (13300, 13300), (1, 70_000_000)])
def test_large_images_are_refused_before_they_are_decoded(tmp_path, recwarn, capfd, size):
    (tmp_path / "large.png").write_bytes(png(*size) if size[0] > 1 else png(1, 1).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", *size)))  # fmt: skip
    with pytest.raises(InputError, match=r"large\.png") as caught:
        open_image(tmp_path / "large.png")
    assert "64,000,000 are read; make it smaller" in str(caught.value) or size[0] == 1
    assert "\n" not in str(caught.value)
    assert not recwarn.list
    assert capfd.readouterr().err == ""


def test_large_jpegs_are_decoded_smaller(tmp_path, monkeypatch):
    Image.fromarray(np.full((64, 96, 3), 200, np.uint8)).save(tmp_path / "large.jpg")
    monkeypatch.setattr(opening, "MOST_PIXELS", 500)
    image = open_image(tmp_path / "large.jpg")
    assert image.size == (24, 16)
    assert np.asarray(image)[8, 8].tolist() == [200] * 3
    monkeypatch.setattr(opening, "MOST_PIXELS", 50)
    with pytest.raises(InputError, match="12 x 8 pixels, at most 50"):
        open_image(tmp_path / "large.jpg")


def test_transparent_pixels_in_strips(monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 255, (50, 20, 4), dtype=np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("LA"), Image.fromarray(pixels).convert("P")):
        image.info["transparency"] = 3 if image.mode == "P" else None
        whole = open_image(image)
        monkeypatch.setattr(opening, "ROWS", 7)
        np.testing.assert_array_equal(np.asarray(open_image(image)), np.asarray(whole))
        monkeypatch.undo()


def test_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "image.png")), np.rot90(PIXELS, -1))


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", "a\0b", "x" * 5000):
        with pytest.raises(InputError, match="image ") as caught:
            open_image(path)
        assert "\n" not in str(caught.value)
