"""Name table of Switch Transformers: blocks of either stack, expert by expert, as on the hub."""

import dataclasses
from collections.abc import Collection

import numpy as np

from expertflow_jax.checkpoints.files import TensorFiles
from expertflow_jax.checkpoints.names import LEAVES, DecoderNames, Path, Shape
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.models.switch_config import SwitchConfig

TABLES = {"embed_tokens": "encoder.embed_tokens.weight", "decoder_embed_tokens": "decoder.embed_tokens.weight"}
HEAD = {"lm_head": "lm_head.weight"}
SHARED = "shared.weight"
# What a single table may be stored as, often as all of them; transformers ties the others to the first that is there.
ONE_TABLE = (SHARED, *TABLES.values(), *HEAD.values())
UNREAD = (
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"  # of old files; cross-attention has none
)


def _block(layer: int, encoder_layers: int) -> tuple[str, int]:
    """Stack and block of a layer of the one list, as names begin; and the number of its feed-forward part."""
    if layer < encoder_layers:
        return f"encoder.block.{layer}", 1
    return f"decoder.block.{layer - encoder_layers}", 2


@dataclasses.dataclass(frozen=True)
class SwitchExperts:
    """Two linear layers per expert, [F, D] and [D, F]."""

    encoder_layers: int

    def _names(self, layer: int, expert: int) -> tuple[str, str]:
        block, part = _block(layer, self.encoder_layers)
        module = f"{block}.layer.{part}.mlp.experts.expert_{expert}"
        return f"{module}.wi.weight", f"{module}.wo.weight"

    def shapes(self, config: ModelConfig, layer: int) -> dict[str, Shape]:
        text = config.text
        shapes = ((text.moe_intermediate_size, text.hidden_size), (text.hidden_size, text.moe_intermediate_size))
        return {
            name: shape
            for expert in range(text.num_experts)
            for name, shape in zip(self._names(layer, expert), shapes, strict=True)
        }

    def read(self, files: TensorFiles, layer: int, expert: int) -> tuple[np.ndarray, np.ndarray]:
        up, down = (files.read(name) for name in self._names(layer, expert))
        return up.T, down.T

    def write(self, layer: int, gate_up: np.ndarray, down: np.ndarray) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        for expert, (up, back) in enumerate(zip(gate_up, down, strict=True)):
            tensors |= dict(zip(self._names(layer, expert), (up.T, back.T), strict=True))
        return tensors


@dataclasses.dataclass(frozen=True)
class SwitchNames(DecoderNames):
    """The name table of one model.

    Attributes:
      encoder_layers: of the model.
      tables: tensors of the two embedding tables and the head, by their names here.
    """

    trunk: str = ""
    encoder_layers: int = 0
    tables: tuple[tuple[str, str], ...] = tuple((TABLES | HEAD).items())

    def bound(self, config: SwitchConfig, names: Collection[str] | None = None) -> "SwitchNames":  # type: ignore[override]
        # Files that transformers 4 wrote hold one table for both stacks, whether the head is tied or not.
        separate = TABLES | HEAD
        one = next((name for name in ONE_TABLE if name in names), SHARED) if names is not None else SHARED
        if config.one_table:
            tables = dict.fromkeys(separate, one)
        elif names is None:
            tables = separate
        elif config.tie_word_embeddings:
            tables = {key: name if name in names else one for key, name in separate.items()}
        else:
            tables = separate if set(TABLES.values()) & set(names) else dict.fromkeys(TABLES, SHARED) | HEAD
        layers = config.text.encoder_layers
        return SwitchNames((SwitchExperts(layers),), encoder_layers=layers, tables=tuple(tables.items()))

    def stacks(self, config: SwitchConfig) -> dict[str, tuple[str, int]]:  # type: ignore[override]
        text = config.text
        return {
            "num_layers": ("encoder.block", text.encoder_layers),
            "num_decoder_layers": ("decoder.block", text.decoder_layers),
        }

    def with_stored_head(self, config: SwitchConfig, files: TensorFiles) -> SwitchConfig:  # type: ignore[override]
        if not config.tie_word_embeddings:
            return config
        first, *others = [name for name in ONE_TABLE if name in files.names] or [SHARED]
        one = all(files.same(first, name) for name in others)
        return config if one else dataclasses.replace(config, own_tables=True)

    def spare(self, config: ModelConfig) -> set[str]:
        return super().spare(config) | {SHARED, *TABLES.values(), UNREAD}

    def copies(self, config: SwitchConfig) -> dict[str, str]:  # type: ignore[override]
        """transformers 5 wants the shared table, which it does not read, beside two of its own."""
        return {} if config.one_table else {SHARED: TABLES["embed_tokens"]}

    def hf_name(self, path: Path) -> str:
        head, *rest, leaf = (str(part) for part in path)
        if head in TABLES | HEAD:
            return dict(self.tables)[head]
        if head == "norm":
            return "decoder.final_layer_norm.weight"
        layer, first, *inner = rest
        block, part = _block(int(layer), self.encoder_layers)
        modules = {
            "self_norm": "layer.0.layer_norm",
            "self_attention": "layer.0.SelfAttention",
            "cross_norm": "layer.1.layer_norm",
            "cross_attention": "layer.1.EncDecAttention",
            "feed_forward_norm": f"layer.{part}.layer_norm",
            "router": f"layer.{part}.mlp.router.classifier",
            "mlp": f"layer.{part}.mlp",
        }
        if first == "encoder_norm":
            return "encoder.final_layer_norm.weight"
        if first == "position_bias":  # the first block's, for all of the stack
            return f"{block.split('.')[0]}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return ".".join([block, modules[first], *inner, LEAVES[leaf]])


NAMES = SwitchNames(())
