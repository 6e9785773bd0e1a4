"""Folders and names that are no checkpoint: one line that says what is there and what to do."""

import json

import pytest

from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.errors import InputError
from expertflow_jax.inference.loading import load_model
from expertflow_jax.locate import locate

CONFIG = {
    "model_type": "mixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8,
    "num_key_value_heads": 2, "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", r"pickled weights.*pytorch_model\.bin.*save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "pickled weights.*save_pretrained"),
        ("consolidated.00.pth", "pickled weights"),
        ("model-Q4_K_M.gguf", r"GGUF \(model-Q4_K_M\.gguf\).*safetensors"),
        ("adapter_config.json", "an adapter.*merge_and_unload"),
        ("predictor_config.json", "predictor"),
        ("consolidated.safetensors", r"maker's own form.*download model"),
        ("tf_model.h5", "TensorFlow"),
        ("model-00001-of-00002.safetensors", r"shards without an index.*index\.json too"),
        ("checkpoint-100/config.json", r"checkpoints \(checkpoint-100/config\.json\): name one of these"),
        ("README.md", "name a folder with config.json"),
        ("", "the folder is empty"),
    ],
)
def test_a_folder_of_another_form_is_named(tmp_path, file, message, with_config):
    folder = tmp_path / "model"
    folder.mkdir()
    if file:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"x")
    if with_config:
        (folder / "config.json").write_text(json.dumps(CONFIG))
    if with_config and not file:
        message = "name a folder with config.json and the weights as safetensors"
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(folder)) if with_config else read_config(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no name"),
        (" ", "no name"),
        ("nosuch", "is no directory"),
        ("a/b/c", "is no directory"),
        ("owner/not such", "hub did not give it.*name its directory"),
        ("owner/model", "hub did not give it.*name its directory"),
        ("x" * 5000, "File name too long"),
        ("\0", "is no directory"),
    ],
)
def test_a_name_of_nothing(monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message) as caught:
        locate(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_file_instead_of_a_folder(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="is a file; GGUF, which is not read; name the directory"):
        locate(str(tmp_path / "model.gguf"))
