"""A checkpoint that answers any prompt with a text of one's choice, token by token: for tests of what is shown."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from random_module import random_module
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from expertflow_jax.checkpoints import save_hf
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.models.qwen3_moe import Qwen3MoeConfig

END, START = 0, 1
BYTE_LEVEL = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = 264


def write_scripted_model(directory: Path, tokens: list[int], *, end: bool = True, scale: float = 1.0) -> None:
    """Writes a Qwen3-MoE of one layer that only looks at the last token.

    Args:
      tokens: distinct ids, the answer; a prompt has to end with token START.
      end: the stop token follows; otherwise the last one is repeated for ever.
      scale: of the logits, the answer's about 64 and others' near 0 at 1.
    """
    width = 64
    config = Qwen3MoeConfig.from_hf(
        {
            "model_type": "qwen3_moe",
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 4,
            "moe_intermediate_size": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "max_position_embeddings": 128,
            "eos_token_id": END,
        }
    )
    module = random_module(CausalLM, config, dtype=jnp.float32)
    embedding_VxD = np.random.default_rng(0).normal(size=(VOCABULARY, width)).astype(np.float32)
    head_VxD = np.zeros((VOCABULARY, width), np.float32)
    following = [*tokens, END] if end else [*tokens, tokens[-1]]
    for token, after in zip([START, *tokens], following, strict=True):
        head_VxD[after] += scale * embedding_VxD[token]

    def scripted(path: tuple, values: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "embed" in name or "head" in name:
            table = embedding_VxD if "embed" in name else head_VxD
            return jnp.asarray(table if values.shape == table.shape else table.T)
        return jnp.ones_like(values) if "norm" in name else jnp.zeros_like(values)

    nnx.update(module, jax.tree_util.tree_map_with_path(scripted, nnx.state(module)))
    save_hf(directory, config, module, np.dtype(np.float32))


def write_byte_level_tokenizer(directory: Path) -> None:
    """Ids 2 to 257 are the bytes, as Qwen's tokenizers have them; every prompt is the token START."""
    vocabulary = {"<end>": END, "<start>": START} | {piece: 2 + i for i, piece in enumerate(BYTE_LEVEL)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<start>"])
    _write(directory, tokenizer)


def write_byte_fallback_tokenizer(directory: Path) -> None:
    """Ids 2 to 257 are "<0x00>" to "<0xFF>", as Llama's and Mixtral's tokenizers have them."""
    vocabulary = {"<end>": END, "<start>": START} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<end>", "<start>"])
    _write(directory, tokenizer)


def _write(directory: Path, tokenizer: Tokenizer) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    template = {"chat_template": "<start>", "eos_token": "<end>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(template), encoding="utf-8")


def byte_level_ids(text: str) -> list[int]:
    """Of the byte-level tokenizer."""
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [2 + BYTE_LEVEL.index(c) for piece, _ in encode.pre_tokenize_str(text) for c in piece]
