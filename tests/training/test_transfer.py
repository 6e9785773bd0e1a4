"""Training may begin with all parameters of a model that has other words."""

import numpy as np
import pytest
from flax import nnx
from random_module import random_module
from tokenizers import Tokenizer

from configs import easy_vqa_moe
from expertflow_jax import checkpoints
from expertflow_jax.errors import InputError
from expertflow_jax.locate import locate
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe
from expertflow_jax.tasks.word_processor import IM_START
from expertflow_jax.training.course import architecture
from expertflow_jax.training.easy_vqa import EasyVqa
from expertflow_jax.training.transfer import transfer

EMBEDDING, HEAD = ("embed_tokens", "embedding"), ("lm_head", "kernel")


def arrays(state):
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def test_known_words_keep_their_rows_and_the_rest_is_as_in_the_trained_model():
    config, path = easy_vqa_moe.get_config(), locate("digit_scenes_moe")
    module, tokenizer = random_module(Qwen3VLMoe, architecture(config)), EasyVqa.processor.build_tokenizer()
    fresh, begun = arrays(nnx.state(module)), arrays(transfer(module, tokenizer, path))
    trained = arrays(nnx.state(checkpoints.load_model(path)))
    assert begun.keys() == fresh.keys()
    for name in fresh.keys() - {EMBEDDING, HEAD}:
        np.testing.assert_array_equal(begun[name], trained[name].astype(np.float32))
    theirs = Tokenizer.from_file(str(path / "tokenizer.json"))
    for word, known in ((IM_START, IM_START), ("yes", "yes"), ("what", "What")):
        here, there = tokenizer.token_to_id(word), theirs.token_to_id(known)
        np.testing.assert_array_equal(begun[EMBEDDING][here], trained[EMBEDDING][there].astype(np.float32))
        np.testing.assert_array_equal(begun[HEAD][:, here], trained[HEAD][:, there].astype(np.float32))
    new = tokenizer.token_to_id("triangle")
    np.testing.assert_array_equal(begun[EMBEDDING][new], fresh[EMBEDDING][new])


def test_another_architecture_is_refused():
    config = easy_vqa_moe.get_config()
    config.text.num_experts = 8
    module = random_module(Qwen3VLMoe, architecture(config))
    with pytest.raises(InputError, match="config key start: digit_scenes_moe has another shape at"):
        transfer(module, EasyVqa.processor.build_tokenizer(), locate("digit_scenes_moe"))
