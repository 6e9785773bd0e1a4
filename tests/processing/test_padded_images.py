"""Aria's preprocessing against committed arrays of transformers' AriaProcessor (tests/goldens), and what it refuses."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from padded_processor_parity import check_padded_conversations

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor
from expertflow_jax.processing.padded_images import PaddedImageProcessor, best_size, fitted

GOLDENS = Path(__file__).parents[1] / "goldens"
PROCESSOR = GOLDENS / "padded_processor"
STRIDE = 2003
SMALL = PaddedImageProcessor(patch_size=4, max_image_size=12, min_image_size=4, image_tokens=((12, 5),))


def changed(tmp_path, file, **values):
    """The processor of the golden with some values of a file changed."""
    shutil.copytree(PROCESSOR, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return tmp_path / "model"


def test_conversations(tmp_path):
    assert check_padded_conversations(PROCESSOR, GOLDENS / "processor" / "images", STRIDE, tmp_path) == 33


def test_processor_config_of_transformers_5(tmp_path):
    """It holds the image processor's settings too."""
    settings = json.loads((PROCESSOR / "preprocessor_config.json").read_text())
    model = changed(tmp_path, "processor_config.json", image_processor=settings | {"max_image_size": 490})
    (model / "preprocessor_config.json").unlink()
    made = Processor.from_directory(model).encode("<|img|>", [GOLDENS / "processor" / "images" / "small.png"])
    assert len(made.input_ids) == 3
    assert made.image_grid_thw.tolist() == [[1, 7, 7]]


def test_padding_is_marked_and_black():
    patches, grids = SMALL(np.full((3, 6, 3), 255, np.uint8))  # grows to 6 x 12
    assert grids.tolist() == [[1, 3, 3]]
    assert patches[:, -1].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    whole, half = patches[0, :-1].reshape(3, 4, 4), patches[3, :-1].reshape(3, 4, 4)
    assert (whole == 1).all()
    assert (half[:, :2] == 1).all()
    assert (half[:, 2:] == -1).all()
    assert (patches[6:, :-1] == -1).all()
    assert SMALL.tokens(grids) == 5


def test_crops_of_one_image_count_each():
    split = PaddedImageProcessor(
        4, 12, 4, split_image=True, split_resolutions=((12, 24), (24, 12)), image_tokens=((12, 5),)
    )
    patches, grids = split(np.zeros((10, 30, 3), np.uint8))
    assert grids.tolist() == [[1, 3, 3]] * 2
    assert len(patches) == 18
    assert split.tokens(grids) == 10


def test_sizes_to_fit_into():
    sizes = ((490, 980), (980, 490), (980, 980))
    assert best_size(1000, 3000, sizes) == (490, 980)
    assert best_size(3000, 1000, sizes) == (980, 490)
    assert best_size(900, 900, sizes) == (980, 980)
    assert fitted(100, 300, (490, 980)) == (327, 980)
    assert fitted(300, 100, (490, 980)) == (490, 164)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("preprocessor_config.json", {"max_image_size": 700}, "max_image_size 700 has no number of tokens"),
        ("preprocessor_config.json", {"min_image_size": 981}, "min_image_size 981"),
        ("preprocessor_config.json", {"max_image_size": "large"}, "wrong kind"),
        ("preprocessor_config.json", {"split_resolutions": [490]}, "wrong kind"),
        ("preprocessor_config.json", {"resample": 17}, "wrong kind"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("processor_config.json", {"size_conversion": [490]}, "wrong kind"),
        ("config.json", {"vision_config": {"patch_size": "x"}}, "wrong kind"),
    ],
)
def test_mistakes_are_named(tmp_path, file, values, message):
    with pytest.raises(InputError, match=message) as caught:
        Processor.from_directory(changed(tmp_path, file, **values))
    assert "\n" not in str(caught.value)


def test_an_empty_image():
    with pytest.raises(InputError, match="empty"):
        SMALL(np.zeros((0, 4, 3), np.uint8))
