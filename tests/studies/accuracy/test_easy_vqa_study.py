"""The committed easy-VQA model, from the package's test split by official files to a study; it needs the package."""

import pytest

from configs import easy_vqa_study
from expertflow_jax.studies.accuracy import runner


def test_the_committed_model_answers_the_test_split(tmp_path):
    pytest.importorskip("easy_vqa")
    config = easy_vqa_study.get_config()
    config.easy_vqa.images = 3
    config.num_examples = 0
    grid = config.grids.policies
    config.grids = {"policies": grid}
    grid.update(policies=("resident", "expertflow"), cache_fractions=(0.5,))
    rows = runner.run(config, tmp_path / "study", "test")
    assert {row.policy for row in rows} == {"resident", "expertflow"}
    for row in rows:
        assert row.num_examples > 16
        assert row.accuracy >= 0.9
        assert row.bit_identical
        assert row.flips == 0
