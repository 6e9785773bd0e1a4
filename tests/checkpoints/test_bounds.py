"""Nothing unbounded comes from a file: sizes have caps, numbers are finite, files regular and of limited size."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest

from expertflow_jax.checkpoints import load_dense_and_experts
from expertflow_jax.checkpoints.files import JSON_BYTES, read_json
from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.errors import InputError

MODELS = Path(__file__).parents[1] / "goldens" / "models"
CASES = sorted(path.name for path in MODELS.iterdir())
COUNTS = ("num_hidden_layers", "depth", "num_layers", "num_decoder_layers")
EXPERTS = ("num_experts", "num_local_experts", "moe_num_experts")


def refusal(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def places(values, path=()):
    """(path, value) of everything in a config, objects and lists included."""
    for key, value in values.items():
        yield (*path, key), value
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def changed(case: str, path: tuple, value):
    values = copy.deepcopy(json.loads((MODELS / case / "config.json").read_text(encoding="utf-8")))
    where = values
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    return values


def keys(names):
    for case in CASES:
        values = json.loads((MODELS / case / "config.json").read_text(encoding="utf-8"))
        yield from ((case, path) for path, _ in places(values) if path[-1] in names)


@pytest.mark.parametrize(("case", "path"), keys(COUNTS + EXPERTS))
@pytest.mark.parametrize("value", [200, 10_000_000, 10**12, 10**400])
def test_counts_beyond_the_files(tmp_path, case, path, value):
    """200 is below every cap, and is compared with the names of tensors; no module is built for it."""
    if path[-1] in EXPERTS and value == 200:
        value = 4_097
    (tmp_path / "model.safetensors").symlink_to(MODELS / case / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(changed(case, path, "N")).replace('"N"', str(value)))
    said = refusal(load_dense_and_experts, tmp_path)
    assert path[-1] in said or "layer_types: want" in said


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "something_else"])
def test_numbers_that_are_not_finite(tmp_path, key, text):
    values = changed("qwen3_moe_stretched", (key,), "N")
    (tmp_path / "config.json").write_text(json.dumps(values).replace('"N"', text))
    assert f"{key} is NaN or infinite" in refusal(read_config, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -1.0, 0, True, "1e-6", 1e39, [1e-6]])
def test_numbers_of_a_config_that_is_no_file(value):
    from expertflow_jax.checkpoints.families import FAMILIES

    values = changed("qwen3_moe_stretched", ("rms_norm_eps",), value)
    assert "rms_norm_eps" in refusal(FAMILIES["qwen3_moe"].config.from_hf, values)


@pytest.mark.parametrize("sections", [[10**9] * 3, [1, 1, 1], [0, 0, 0], [True, 1, 1]])
def test_sections_of_the_rotation_that_do_not_add_up(tmp_path, sections):
    values = changed("base", ("text_config", "rope_parameters", "mrope_section"), sections)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert "mrope_section" in refusal(read_config, tmp_path)


def test_only_regular_files_of_limited_size_are_read(tmp_path):
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("zero", "pipe"):
        assert f"{name}: not a regular file" in refusal(read_json, tmp_path / name)
    assert "folder" in refusal(read_json, tmp_path / "folder")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(JSON_BYTES + 1)
    assert "more than the" in refusal(read_json, tmp_path / "large")
    for name, data in (
        ("deep", b"[" * 100_000),
        ("digits", b'{"a": ' + b"9" * 5000 + b"}"),
        ("binary", b"\xff\xfe\x00"),
    ):
        (tmp_path / name).write_bytes(data)
        assert f"{name}: not JSON" in refusal(read_json, tmp_path / name)


@pytest.mark.parametrize("file", ["a" * 5000 + ".safetensors", "a\nb.safetensors", "\0.safetensors", 7, None, ["x"]])
def test_names_in_an_index_that_no_file_can_have(tmp_path, file):
    shutil.copy(MODELS / "base" / "config.json", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    refusal(load_dense_and_experts, tmp_path)
