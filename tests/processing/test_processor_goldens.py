"""Prompts, token ids and patches against committed ones of transformers' Qwen3VLProcessor (tests/goldens)."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from processor_parity import check_conversations

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor

GOLDENS = Path(__file__).parents[1] / "goldens" / "processor"


def test_conversations():
    assert check_conversations(Processor.from_directory(GOLDENS), GOLDENS) == 19


def test_processor_config_of_transformers_5(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert check_conversations(Processor.from_directory(tmp_path / "model"), GOLDENS) == 19


def test_the_template_may_refuse():
    processor = Processor.from_directory(GOLDENS)
    with pytest.raises(InputError, match="no such role: robot"):
        processor.apply_chat_template([{"role": "robot", "content": "hello"}])


def test_tools_are_not_escaped_as_html(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content | tojson }}")
    processor = Processor.from_directory(tmp_path / "model")
    assert processor.apply_chat_template([{"role": "user", "content": "größer <b>"}]) == '"größer <b>"'


def test_a_template_that_does_not_parse(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for message in %}")
    with pytest.raises(InputError, match="chat template does not parse"):
        Processor.from_directory(tmp_path / "model")


def test_templates_run_in_a_sandbox(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InputError, match="chat template refuses"):
        Processor.from_directory(tmp_path / "model").apply_chat_template([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(("text", "images"), [("<|image_pad|>", 0), ("word", 1), ("<|image_pad|><|image_pad|>", 1)])
def test_placeholders_and_images_must_agree(text, images):
    picture = GOLDENS / "images" / "small.png"
    with pytest.raises(InputError, match="image placeholders"):
        Processor.from_directory(GOLDENS).encode(text, [picture] * images)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_damaged_files_are_named(tmp_path, name):
    shutil.copytree(GOLDENS, tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=name):
        Processor.from_directory(tmp_path / "model")


def test_missing_files(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"patch_size": 4}')
    with pytest.raises(InputError, match="no key 'temporal_patch_size'"):
        Processor.from_directory(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="takes no images"):
        Processor.from_directory(tmp_path / "model").encode("<|image_pad|>", [GOLDENS / "images" / "small.png"])
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        Processor.from_directory(tmp_path / "model")


def test_stop_tokens():
    processor = Processor.from_directory(GOLDENS)
    assert processor.decode(processor.eos_token_ids, skip_special_tokens=False) == "<|im_end|>"


def test_stop_tokens_of_the_configs_come_before_the_tokenizers(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    for file, ids in (("config.json", 7), ("generation_config.json", [8, 9])):
        path = tmp_path / "model" / file
        values = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(values | {"eos_token_id": ids}))
        assert Processor.from_directory(path.parent).eos_token_ids == tuple(np.atleast_1d(ids).tolist())


def test_a_template_that_fails_in_its_own_way(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for i in range(10 ** 12) %}x{% endfor %}")
    with pytest.raises(InputError, match="chat template refuses"):
        Processor.from_directory(tmp_path / "model").apply_chat_template([{"role": "user", "content": "hello"}])
