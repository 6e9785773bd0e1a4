"""Name table of Mixtral: w1 is the gate, w3 up and w2 down, expert by expert as on the hub; fused ones load too."""

from expertflow_jax.checkpoints.names import DecoderNames, FusedExperts, SeparateExperts

_BLOCK = "model.layers.{layer}.block_sparse_moe"

NAMES = DecoderNames(
    experts=(
        SeparateExperts(f"{_BLOCK}.experts", gate="w1", up="w3", down="w2"),
        FusedExperts(f"{_BLOCK}.experts"),
    ),
    block="block_sparse_moe",
)
