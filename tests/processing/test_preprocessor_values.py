"""Numbers of preprocessor_config.json: refused, by key, where they could not be used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor
from expertflow_jax.processing.images import ImageProcessor

GOLDENS = Path(__file__).parents[1] / "goldens"
GOOD = json.loads((GOLDENS / "processor" / "preprocessor_config.json").read_text())
NAN, INFINITY = float("nan"), float("inf")
WRONG = [
    *[
        {key: value}
        for key in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")
        for value in (0, -8, "x", NAN, INFINITY, 1.5, True, [], 10**400, 1e300)
    ],
    *[{"size": {"shortest_edge": low, "longest_edge": 10**13}} for low in (-5, 0, 3e8, 4e9, 1e12, 1e30, "x", None)],
    *[{"size": {"shortest_edge": 64, "longest_edge": high}} for high in (-5, 0, 32, INFINITY, "x")],
    *[{"size": size} for size in (5, [1, 2], "x", {"height": 5})],
    *[
        {key: value}
        for key in ("image_mean", "image_std")
        for value in ("x", [1, 2], [1, 2, NAN], [INFINITY] * 3, [True])
    ],
    {"image_std": [0.5, 0.0, 0.5]},
    {"image_std": 0},
    {"image_std": [-1, -1, -1]},
    *[{"rescale_factor": value} for value in (0, -1, NAN, INFINITY, "x", 1e-300, 10**400)],
    *[{key: value} for key in ("do_resize", "do_rescale", "do_normalize") for value in ("no", 0, {})],
    {"do_rescale": False},
    {"do_normalize": False},
    {"resample": 17},
    {"resample": "bicubic"},
]


@pytest.mark.parametrize("values", WRONG, ids=lambda values: str(values)[:40])
def test_refused_by_key(values):
    (key,) = values
    with pytest.raises(InputError) as caught:
        ImageProcessor.from_config(GOOD | values, "preprocessor_config.json")
    assert "\n" not in str(caught.value)
    assert key in str(caught.value) or "edge" in str(caught.value)
    assert "preprocessor_config.json" in str(caught.value)


@pytest.mark.parametrize("values", [{"image_mean": NAN}, {"image_std": [0, 1, 1]}, {"rescale_factor": INFINITY},
                                    {"max_image_size": 0}, {"max_image_size": 10**9}, {"min_image_size": -1},
                                    {"split_resolutions": [[490, 10**9]]}, {"split_resolutions": [[0, 490]]},
                                    {"split_image": 1}])  # fmt: skip
def test_padded_images_too(tmp_path, values):
    shutil.copytree(GOLDENS / "padded_processor", tmp_path / "model")
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(InputError, match=next(iter(values))) as caught:
        Processor.from_directory(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_images_that_no_context_holds(tmp_path):
    shutil.copytree(GOLDENS / "processor", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"text_config": {"max_position_embeddings": 16}}')
    file = tmp_path / "model" / "preprocessor_config.json"
    values = GOOD | {"patch_size": 8, "merge_size": 2, "size": {"shortest_edge": 16 * 256, "longest_edge": 64 * 256}}
    file.write_text(json.dumps(values))
    processor = ImageProcessor.from_config(values, "preprocessor_config.json", context=16)
    assert Processor.from_directory(tmp_path / "model").takes_images
    assert processor(np.zeros((64, 64, 3), np.uint8))[1].tolist() == [1, 8, 8]
    with pytest.raises(InputError, match=r"64 tokens; at most .* and 16 tokens"):
        processor(np.zeros((128, 128, 3), np.uint8))
    file.write_text(json.dumps(values | {"min_pixels": 17 * 256}))
    with pytest.raises(InputError, match="17 tokens"):
        Processor.from_directory(tmp_path / "model")


def test_images_as_they_are():
    processor = ImageProcessor.from_config(GOOD | {"do_resize": False}, "preprocessor_config.json")
    side = processor.patch_size * processor.merge_size
    assert processor(np.zeros((side, 2 * side, 3), np.uint8))[1].tolist() == [
        1,
        processor.merge_size,
        2 * processor.merge_size,
    ]
    with pytest.raises(InputError, match="no multiples"):
        processor(np.zeros((side, side + 1, 3), np.uint8))
