"""Compares our processor with what transformers' Qwen3VLProcessor made of the same conversations and images (see
tests/parity/reference_processor.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expertflow_jax.processing import Processor

PIXEL_TOLERANCE = 1e-5  # pixel values are of order one; the same resized bytes, scaled in another order


def encoded(processor: Processor, each: dict[str, Any], images: Path, expected_ids: np.ndarray, where: str) -> Any:
    """One conversation, its prompt and token ids as the reference has them; None if it has no images."""
    prompt = processor.apply_chat_template(each["messages"])
    assert prompt == each["prompt"]
    files = [images / name for name in each["images"]]
    made = processor.encode(prompt, files if each["handed"] == "path" else [Image.open(file) for file in files])
    np.testing.assert_array_equal(made.input_ids, expected_ids, err_msg=where)
    if not files:
        assert made.pixel_values is None
        return None
    assert made.pixel_values is not None
    assert made.image_grid_thw is not None
    return made


def check_conversations(processor: Processor, directory: Path) -> int:
    """Same prompt text and token ids, same patches; returns how many conversations there were."""
    said = json.loads((directory / "conversations.json").read_text())
    arrays = np.load(directory / "reference.npz")
    for number, each in enumerate(said):
        where = f"conversation {number}, images {each['images']} as {each['handed']}"
        made = encoded(processor, each, directory / "images", arrays[f"{number}/input_ids"], where)
        if made is None:
            continue
        np.testing.assert_array_equal(made.image_grid_thw, arrays[f"{number}/image_grid_thw"], err_msg=where)
        assert made.pixel_values.dtype == np.float32
        np.testing.assert_allclose(
            made.pixel_values, arrays[f"{number}/pixel_values"], rtol=0, atol=PIXEL_TOLERANCE, err_msg=where
        )
    return len(said)
