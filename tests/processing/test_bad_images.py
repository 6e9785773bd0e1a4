"""Every image that is none, or not one for this model, ends in one clear line."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.processing.images import ImageProcessor, smart_resize
from expertflow_jax.processing.opening import open_image

GOOD = Path(__file__).parents[1] / "goldens" / "processor" / "images" / "large.png"
PROCESSOR = ImageProcessor(4, 2, 2, 16 * 16, 32 * 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def bytes_of(form: str) -> bytes:
    file = io.BytesIO()
    Image.open(GOOD).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.6])
def test_truncated_files(tmp_path, form, part):
    whole = bytes_of(form)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match="not a readable image") as caught:
        open_image(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_that_shows_only_in_the_pixels(tmp_path):
    whole = bytearray(bytes_of("PNG"))
    whole[80:120] = bytes(40)
    path = tmp_path / "damaged.png"
    path.write_bytes(whole)
    for source in (path, str(path)):
        with pytest.raises(InputError, match=r"damaged\.png: not a readable image"):
            PROCESSOR(source)
    with pytest.raises(InputError, match=r"damaged\.png: not a readable image"):
        PROCESSOR(Image.open(path))


def test_no_image_at_all(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="not a readable image"):
        open_image(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match="not a readable image"):
        open_image(tmp_path / "text.png")


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros(9, np.uint8), np.zeros((2, 4, 4, 3), np.uint8)],
)
def test_arrays_of_another_form(array):
    with pytest.raises(InputError, match="want uint8"):
        open_image(array)


def test_impossible_sizes():
    with pytest.raises(InputError, match="more elongated than 200"):
        smart_resize(4, 900, 8, 256, 1024)
    with pytest.raises(InputError, match="empty"):
        PROCESSOR(Image.new("RGB", (0, 7)))


@pytest.mark.parametrize("height", [9, 16, 40, 333])
@pytest.mark.parametrize("width", [7, 16, 41, 250])
def test_sizes_are_multiples_within_the_range(height, width):
    high, wide = smart_resize(height, width, 8, 256, 4096)
    assert high % 8 == wide % 8 == 0
    assert 256 <= high * wide <= 4096


def test_settings_of_the_wrong_kind():
    values = {"patch_size": "four", "temporal_patch_size": 2, "merge_size": 2, "size": {}}
    with pytest.raises(InputError, match="wrong kind"):
        ImageProcessor.from_config(values, "preprocessor_config.json")
