"""The blind benchmarks ask the same questions and score alike, with black images."""

import numpy as np
import pytest

from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from expertflow_jax.tasks.registry import make_task


@pytest.mark.parametrize("name", ["vqa_v2", "mmbench"])
def test_only_the_images_differ(tmp_path, name):
    write_benchmark(tmp_path, train=40, val=40, seed=0)
    seeing, blind = make_task(name, tmp_path, "val"), make_task(f"{name}_blind", tmp_path, "val")
    assert (blind.circular, blind.teacher_forced) == (seeing.circular, seeing.teacher_forced)
    for example, dark in zip(seeing.examples(8), blind.examples(8), strict=True):
        assert (dark.id, dark.messages, dark.target, dark.cluster) == (
            example.id,
            example.messages,
            example.target,
            example.cluster,
        )
        assert dark.image.shape == example.image.shape
        assert not dark.image.any()
        assert example.image.any()
        assert np.isclose(blind.score(dark, "2"), seeing.score(example, "2"))
