"""Name table of Mixtral: w1 is the gate, w3 up and w2 down, expert by expert as on the hub; fused ones load too.

The hub's files, those that transformers 5 writes too, call the block `block_sparse_moe`; transformers 5 calls it `mlp`
in memory, and files of a bare state dict have that name.
"""

import dataclasses
from collections.abc import Collection

from expertflow_jax.checkpoints.names import DecoderNames, FusedExperts, SeparateExperts
from expertflow_jax.models.causal_lm import ModelConfig


def _experts(block: str) -> tuple[SeparateExperts, FusedExperts]:
    module = f"model.layers.{{layer}}.{block}.experts"
    return SeparateExperts(module, gate="w1", up="w3", down="w2"), FusedExperts(module)


@dataclasses.dataclass(frozen=True)
class MixtralNames(DecoderNames):
    """The decoder's names, with the block's of the files or of memory."""

    def bound(self, config: ModelConfig, names: Collection[str] | None = None) -> "DecoderNames":
        in_memory = names is not None and not any(".block_sparse_moe." in name for name in names)
        return (IN_MEMORY if in_memory else NAMES).headed(config, names)


NAMES = MixtralNames(_experts("block_sparse_moe"), block="block_sparse_moe")
IN_MEMORY = MixtralNames(_experts("mlp"))
