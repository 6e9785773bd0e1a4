"""Compares our processor with what transformers' AriaProcessor made of the same conversations and images (see
tests/parity/reference_padded_processor.py). Axes: n crops, C channels, S pixels to a side."""

import json
import shutil
from pathlib import Path

import numpy as np
from processor_parity import encoded

from expertflow_jax.processing import Processor

PIXEL_TOLERANCE = 1e-6
PATCH = 70


def squares(patches: np.ndarray, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Our patches as pixels [n, C, S, S], and whether each patch is seen, bool [n, S / patch, S / patch]."""
    images, (_, rows, columns) = len(grids), grids[0]
    cut = patches[:, :-1].reshape(images, rows, columns, 3, PATCH, PATCH).transpose(0, 3, 1, 4, 2, 5)
    return cut.reshape(images, 3, rows * PATCH, columns * PATCH), patches[:, -1].reshape(images, rows, columns) == 0


def check_padded_conversations(directory: Path, images: Path, stride: int, scratch: Path) -> int:
    """Same prompt text and token ids, same pixels and padding; returns how many conversations there were.

    Args:
      directory: processor files, conversations.json and reference.npz.
      images: where the images lie.
      stride: of the numbers that reference.npz has of the pixels.
      scratch: an empty directory.
    """
    shutil.copytree(directory, scratch, dirs_exist_ok=True)
    said = json.loads((directory / "conversations.json").read_text())
    defaults = json.loads((directory / "preprocessor_config.json").read_text())
    arrays = np.load(directory / "reference.npz")
    for number, each in enumerate(said):
        (scratch / "preprocessor_config.json").write_text(json.dumps(defaults | each["settings"]))
        processor = Processor.from_directory(scratch)
        where = f"conversation {number}, images {each['images']} as {each['handed']}, {each['settings']}"
        made = encoded(processor, each, images, arrays[f"{number}/input_ids"], where)
        if made is None:
            continue
        pixels, seen = squares(made.pixel_values, made.image_grid_thw)
        assert pixels.dtype == np.float32
        found = pixels.reshape(-1)[::stride]
        expected = arrays[f"{number}/pixel_values"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=PIXEL_TOLERANCE, err_msg=where)
        first = PATCH * np.arange(seen.shape[1])
        rows, columns = (first < count[:, None] for count in arrays[f"{number}/seen"].T)
        np.testing.assert_array_equal(seen, rows[:, :, None] & columns[:, None], err_msg=where)
    return len(said)
