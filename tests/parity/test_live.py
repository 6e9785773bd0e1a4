"""Runs transformers' models in their own environment and compares, both ways: their checkpoint in our model, ours in
theirs. The reference Python is EXPERTFLOW_REFERENCE_PYTHON or .venv-reference/bin/python."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from model_parity import batches, check_checkpoint, check_forward, check_positions, check_session
from padded_processor_parity import check_padded_conversations
from processor_parity import check_conversations
from reference_cases import CASES, batches_of

from expertflow_jax.checkpoints import load_model as load_module
from expertflow_jax.checkpoints import save_hf
from expertflow_jax.checkpoints.families import family_of
from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.inference.loading import load_model
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.processing import Processor

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("EXPERTFLOW_REFERENCE_PYTHON", ROOT / ".venv-reference" / "bin" / "python"))

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not PYTHON.exists(), reason=f"{PYTHON} is not there; run tests/parity/make_reference_env.sh python3.11"
    ),
]


def reference(*arguments: object, script: str = "reference.py") -> None:
    """Runs a script of the reference side; its complaint becomes the test's."""
    command = [str(PYTHON), str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A directory with a checkpoint and reference.npz per case, made by transformers."""
    directory = tmp_path_factory.mktemp("reference")
    reference("make", directory, *CASES)
    return directory


@pytest.mark.parametrize("case", CASES)
def test_their_checkpoint_in_our_model(checkpoints, case):
    errors = check_checkpoint(checkpoints / case)
    print(f"{case}: largest relative error of logits {max(errors.values()):.2g}")  # shown by pytest -s
    assert set(errors) == set(batches_of(case))


def perturbed(config, seed: int) -> CausalLM:
    """A random model without trivial norms and biases."""
    module = family_of(config).module(config, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    state = dict(nnx.to_flat_state(nnx.state(module)))
    values = {
        path: np.asarray(leaf[...]) + (0.3 * rng.normal(size=leaf.shape) if leaf.ndim == 1 else 0)
        for path, leaf in state.items()
    }
    nnx.update(module, nnx.from_flat_state({path: value.astype(np.float32) for path, value in values.items()}))
    return module


OURS = ["base", "top_1_no_deepstack", "dense_layers", "tied", "no_merge", "stretched"]
OURS += [case for case in CASES if case.startswith("aria")]


@pytest.mark.parametrize("case", [*OURS, *(case for case in CASES if "vision_config" not in CASES[case])])
def test_our_checkpoint_in_their_model(checkpoints, tmp_path, case):
    config = read_config(checkpoints / case)
    module = perturbed(config, seed=3)
    save_hf(tmp_path / "ours", config, module, "float32")
    reference("run", tmp_path / "ours", checkpoints / case / "reference.npz", tmp_path / "theirs.npz")
    arrays = batches(tmp_path / "theirs.npz")["ragged"]
    check_forward(module, arrays)
    check_forward(load_module(tmp_path / "ours"), arrays)
    check_session(load_model(str(tmp_path / "ours")), arrays)


@pytest.mark.parametrize("settings", ["small", "digit_scenes_moe"])
def test_their_processor(tmp_path, settings):
    """A small tokenizer with the family's template, and the trained model's own files."""
    trained = ROOT / "expertflow_jax" / "assets" / settings
    model = [trained] if settings != "small" else []
    reference(tmp_path, *model, script="reference_processor.py")
    assert check_conversations(Processor.from_directory(model[0] if model else tmp_path), tmp_path) == 19


def test_their_processor_of_padded_images(tmp_path):
    reference(tmp_path / "theirs", 7, script="reference_padded_processor.py")
    images = tmp_path / "theirs" / "images"
    assert check_padded_conversations(tmp_path / "theirs", images, 7, tmp_path / "scratch") == 33


def test_the_trained_model_in_transformers(tmp_path):
    trained = ROOT / "expertflow_jax" / "assets" / "digit_scenes_moe"
    config = read_config(trained)
    merge, rng = config.vision.spatial_merge_size, np.random.default_rng(0)
    ids = rng.integers(20, config.text.vocab_size, (2, 16))
    ids[0, 3:12] = config.image_token_id
    given = {
        "input_ids": ids,
        "lengths": np.array([16, 7]),
        "pixel_values": rng.normal(size=(9 * merge**2, config.vision.patch_dim)).astype(np.float32),
        "image_grid_thw": np.array([[1, 3 * merge, 3 * merge]]),
    }
    np.savez(tmp_path / "given.npz", **{f"batch/{name}": array for name, array in given.items()})
    reference("run", trained, tmp_path / "given.npz", tmp_path / "theirs.npz")
    arrays = batches(tmp_path / "theirs.npz")["batch"]
    module = load_module(trained, np.float32)  # as the reference computes, whatever the file holds
    check_positions(module, arrays)
    check_forward(module, arrays)
    check_session(load_model(str(trained), "float32"), arrays)
