"""Checkpoints as they lie on disk: both layouts of the experts, shards, dtypes, and what a damaged one says."""

import json
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from expertflow_jax.checkpoints import load_dense_and_experts, load_model, save, save_hf
from expertflow_jax.errors import InputError

GOLDEN = Path(__file__).parents[1] / "goldens" / "models" / "base"
GATE_UP, DOWN = (f"model.language_model.layers.0.mlp.experts.{name}_proj" for name in ("gate_up", "down"))


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a golden to be damaged."""
    shutil.copytree(GOLDEN, tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, directory / "model.safetensors")


def write_shards(directory: Path, where: dict[str, str]) -> None:
    """Splits the weights into two files; `where` overrides entries of the index."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, directory / file)
    index = {name: file for file, held in shards.items() for name in held} | where
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "model.safetensors").unlink()


def parameters(directory: Path) -> dict:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(load_model(directory)))}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def refusal(directory: Path) -> str:
    """The one line with which loading ends."""
    with pytest.raises(InputError) as caught:
        load_dense_and_experts(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", ["base", "dense_layers", "no_merge"])
def test_experts_in_the_layout_of_the_hub(tmp_path, case):
    golden = GOLDEN.parent / case
    shutil.copytree(golden, tmp_path / "model")

    def turn(tensors):
        for name in tensors:
            if ".experts." in name:
                tensors[name] = tensors[name].swapaxes(1, 2)

    rewrite(tmp_path / "model", turn)
    assert same(parameters(tmp_path / "model"), parameters(golden))


def test_save_then_load(tmp_path):
    module = load_model(GOLDEN)
    save_hf(tmp_path / "again", module.config, module, np.float32)
    assert same(parameters(tmp_path / "again"), parameters(GOLDEN))
    mine, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "again", GOLDEN))
    assert same(mine, theirs)


def test_save_in_shards(tmp_path, monkeypatch):
    module = load_model(GOLDEN)
    monkeypatch.setattr(save, "SHARD_BYTES", 60_000)
    save_hf(tmp_path / "again", module.config, module, np.float32)
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert same(parameters(tmp_path / "again"), parameters(GOLDEN))


def test_what_an_ended_save_leaves_is_no_checkpoint(tmp_path, monkeypatch):
    module, folder = load_model(GOLDEN), tmp_path / "again"
    save_hf(folder, module.config, module, np.float32)  # an earlier checkpoint, of one file
    monkeypatch.setattr(save, "SHARD_BYTES", 60_000)
    with monkeypatch.context() as patched:

        def end_at_the_second(tensors, name, **options):
            if "model-00002" in name:
                raise KeyboardInterrupt
            save_file(tensors, name, **options)

        patched.setattr(save, "save_file", end_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            save_hf(folder, module.config, module, np.float32)
    assert not list(folder.glob("*.partial"))
    assert "config.json" in refusal(folder)
    save_hf(folder, module.config, module, np.float32)
    assert same(parameters(folder), parameters(GOLDEN))


def test_shards(checkpoint):
    write_shards(checkpoint, {})
    assert same(parameters(checkpoint), parameters(GOLDEN))


def test_bfloat16_on_disk(tmp_path):
    module = load_model(GOLDEN)
    save_hf(tmp_path / "narrow", module.config, module, jnp.bfloat16)
    _, dense, experts = load_dense_and_experts(tmp_path / "narrow")
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(dense))} == {jnp.dtype(jnp.bfloat16)}
    assert next(iter(experts))[2].dtype == jnp.bfloat16
    _, dense, experts = load_dense_and_experts(tmp_path / "narrow", jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(dense))} == {jnp.dtype(jnp.float32)}
    assert next(iter(experts))[2].dtype == np.float32


def test_experts_come_one_by_one_in_order():
    config, module, experts = load_dense_and_experts(GOLDEN)
    text = config.text
    order = [(layer, expert) for layer, expert, gate_up, down in experts]
    assert order == [(layer, e) for layer in range(len(text.moe_layers)) for e in range(text.num_experts)]
    assert all(held is None for held in module.experts)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(checkpoint, name):
    (checkpoint / name).unlink()
    assert f"{checkpoint / name}: " in refusal(checkpoint)


def test_no_directory(tmp_path):
    assert "config.json: No such file" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(checkpoint, part):
    file = checkpoint / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    assert "model.safetensors: truncated or damaged" in refusal(checkpoint)


def test_damaged_header(checkpoint):
    file = checkpoint / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[:8] = struct.pack("<Q", 1 << 40)
    file.write_bytes(whole)
    assert "truncated or damaged" in refusal(checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "llama"}'])
def test_damaged_config(checkpoint, text):
    (checkpoint / "config.json").write_text(text)
    assert "config.json" in refusal(checkpoint)


@pytest.mark.parametrize("kind", ["llama", None, ["mixtral"]])
def test_unknown_model_type(checkpoint, kind):
    (checkpoint / "config.json").write_text(json.dumps({"model_type": kind}))
    said = refusal(checkpoint)
    assert f"model_type {kind!r} is not supported" in said
    assert "qwen3_vl_moe" in said


def test_all_tensor_errors_in_one_message(checkpoint):
    def damage(tensors):
        del tensors["model.language_model.norm.weight"], tensors[GATE_UP]
        tensors["model.extra.weight"] = np.zeros(3, np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :-1]
        tensors[DOWN.replace("layers.0", "layers.1")] = np.zeros((8, 3, 3), np.float32)

    rewrite(checkpoint, damage)
    said = refusal(checkpoint)
    assert "2 missing: " in said
    assert "1 unexpected: model.extra.weight" in said
    assert "2 of the wrong shape: " in said
    for name in ("model.language_model.norm.weight", GATE_UP, "lm_head.weight", "layers.1.mlp.experts"):
        assert name in said


def test_index_that_names_a_missing_file(checkpoint):
    write_shards(checkpoint, {"lm_head.weight": "c.safetensors"})
    assert "c.safetensors: no such file" in refusal(checkpoint)


def test_index_that_names_the_wrong_file(checkpoint):
    write_shards(checkpoint, {"lm_head.weight": "b.safetensors", "model.language_model.norm.weight": "a.safetensors"})
    assert "holds" in refusal(checkpoint)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_damaged_index(checkpoint, text):
    (checkpoint / "model.safetensors.index.json").write_text(text)
    (checkpoint / "model.safetensors").unlink()  # which would be read in its place
    assert "index.json" in refusal(checkpoint)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/outside.safetensors", "sub/../../outside.safetensors", 7])
def test_nothing_outside_the_directory_is_followed(checkpoint, file):
    shutil.copy(GOLDEN / "model.safetensors", checkpoint.parent / "outside.safetensors")
    write_shards(checkpoint, {"lm_head.weight": file})
    assert "which is no safetensors file beside it" in refusal(checkpoint)


def test_links_as_in_the_cache_of_the_hub(tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in GOLDEN.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert same(parameters(snapshot), parameters(GOLDEN))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers(checkpoint, value):
    def damage(tensors):
        tensors["model.language_model.norm.weight"][3] = value

    rewrite(checkpoint, damage)
    assert "1 tensors hold NaN or infinity: model.language_model.norm.weight" in refusal(checkpoint)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_experts_that_are_not_numbers(checkpoint, value, dtype):
    def damage(tensors):
        for name in list(tensors):
            tensors[name] = tensors[name].astype(dtype)
        tensors[DOWN][2, 1, 1] = value

    rewrite(checkpoint, damage)
    _, _, experts = load_dense_and_experts(checkpoint)
    with pytest.raises(InputError, match="expert 2 of layer 0 holds NaN or infinity") as caught:
        list(experts)
    assert "\n" not in str(caught.value)


def test_experts_in_any_order():
    _, _, experts = load_dense_and_experts(GOLDEN)
    inorder = {(layer, expert): parts for layer, expert, *parts in experts}
    for (layer, expert), parts in reversed(inorder.items()):
        assert all(np.array_equal(a, b) for a, b in zip(experts.read(layer, expert), parts, strict=True))
    held = sum(t.nbytes for name, t in load_file(GOLDEN / "model.safetensors").items() if ".experts." in name)
    assert experts.file_bytes * len(inorder) == held


def test_a_file_that_shrinks_after_it_was_opened(checkpoint):
    _, _, experts = load_dense_and_experts(checkpoint)
    file = checkpoint / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:2000])
    with pytest.raises(InputError, match="truncated or damaged"):
        list(experts)


def test_tensors_of_a_dtype_that_is_not_read(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({name: t.astype(np.int8) for name, t in tensors.items()}))
    assert "stored as I8; supported: F32, BF16" in refusal(checkpoint)


def test_a_truncated_shard_of_several(checkpoint):
    write_shards(checkpoint, {})
    file = checkpoint / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    assert "b.safetensors: truncated or damaged" in refusal(checkpoint)
