"""Name table of OLMoE: the experts one by one, as on the hub; fused ones load too."""

from expertflow_jax.checkpoints.names import DecoderNames, FusedExperts, SeparateExperts

_EXPERTS = "model.layers.{layer}.mlp.experts"

NAMES = DecoderNames(experts=(SeparateExperts(_EXPERTS), FusedExperts(_EXPERTS)))
