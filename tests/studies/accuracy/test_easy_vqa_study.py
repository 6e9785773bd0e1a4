"""From the package easy-vqa by official files to a study; both tests need the package."""

import pytest

from configs import easy_vqa_study
from expertflow_jax.locate import committed
from expertflow_jax.studies.accuracy import runner


def small_study(workdir, model, predictor):
    config = easy_vqa_study.get_config()
    config.model, config.predictor = model, predictor
    config.easy_vqa.images = 3
    config.num_examples = 16
    grid = config.grids.policies
    config.grids = {"policies": grid}
    grid.update(policies=("resident", "expertflow"), cache_fractions=(0.5,))
    return runner.run(config, workdir, "test")


@pytest.mark.slow
def test_files_are_written_and_answered_by_any_model(tmp_path):
    pytest.importorskip("easy_vqa")
    rows = small_study(tmp_path, "digit_scenes_moe", "digit_scenes_predictor")
    assert {row.policy for row in rows} == {"resident", "expertflow"}
    for row in rows:
        assert 0 < row.num_examples <= 16
        assert row.bit_identical
        assert row.flips == 0


def test_the_committed_model_answers_the_test_split(tmp_path):
    pytest.importorskip("easy_vqa")
    if "easy_vqa_moe" not in committed():
        pytest.skip("no model of easy-VQA is committed")
    for row in small_study(tmp_path, "easy_vqa_moe", "easy_vqa_predictor"):
        assert row.accuracy >= 0.9
