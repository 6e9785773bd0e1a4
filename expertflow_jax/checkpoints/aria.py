"""Name table of Aria; the patch embedding is a Conv2d there and a matrix here.

Files, those that transformers 5 writes too, have the names of its first module tree; transformers 5 calls the same
tensors otherwise in memory, and files of a bare state dict have those names.
"""

import dataclasses
from collections.abc import Collection

from expertflow_jax.checkpoints.names import LEAVES, DecoderNames, FusedExperts, Path, Shape
from expertflow_jax.models.aria_config import AriaConfig

VISION = {
    "patch_embedding": "embeddings.patch_embedding",
    "position_embedding": "embeddings.position_embedding",
    "layers": "encoder.layers",
}
PROJECTOR = {"linear_in": "feed_forward.linear_in", "linear_out": "feed_forward.linear_out"}
QUERY = "query"


@dataclasses.dataclass(frozen=True)
class AriaNames(DecoderNames):
    """The decoder's names with those of vision tower and projector.

    Attributes:
      root: before the names of vision tower and projector.
    """

    block: str = "mlp"
    router: str = "router"
    shared_expert: str = "shared_experts"
    root: str = ""

    def bound(self, config: AriaConfig, names: Collection[str] | None = None) -> "AriaNames":  # type: ignore[override]
        in_memory = names is not None and any(name.startswith(f"{IN_MEMORY.trunk}.") for name in names)
        return (IN_MEMORY if in_memory else self).headed(config, names)  # type: ignore[return-value]

    def stacks(self, config: AriaConfig) -> dict[str, tuple[str, int]]:  # type: ignore[override]
        tower = f"{self.root}vision_tower.encoder.layers"
        layers = {f"text_config.{key}": stack for key, stack in super().stacks(config).items()}
        return layers | {"vision_config.num_hidden_layers": (tower, config.vision.num_hidden_layers)}

    def spare(self, config: AriaConfig) -> set[str]:  # type: ignore[override]
        """A norm that nothing reads, and that the hub's files lack."""
        return super().spare(config) | set(self.copies(config))

    def copies(self, config: AriaConfig) -> dict[str, str]:  # type: ignore[override]
        """transformers wants that norm."""
        tower, last = f"{self.root}vision_tower", config.vision.num_hidden_layers - 1
        return {
            f"{tower}.post_layernorm.{leaf}": f"{tower}.encoder.layers.{last}.layer_norm2.{leaf}"
            for leaf in ("weight", "bias")
        }

    def hf_name(self, path: Path) -> str:
        head, *rest, leaf = (str(part) for part in path)
        if head == "vision":
            return ".".join([f"{self.root}vision_tower", VISION[rest[0]], *rest[1:], LEAVES[leaf]])
        if head != "projector":
            return super().hf_name(path)
        projector = f"{self.root}multi_modal_projector"
        if leaf == QUERY:
            return f"{projector}.{QUERY}"
        if rest[-1] == "in_proj":
            return f"{projector}.cross_attn.multihead_attn.in_proj_{LEAVES[leaf]}"
        if rest[-1] == "out_proj":
            rest.insert(1, "multihead_attn")
        return ".".join([projector, PROJECTOR.get(rest[0], rest[0]), *rest[1:], LEAVES[leaf]])

    def hf_shape(self, config: AriaConfig, path: Path, shape: Shape) -> Shape:  # type: ignore[override]
        if path[:2] == ("vision", "patch_embedding") and path[-1] == "kernel":
            vision = config.vision
            return (shape[1], vision.num_channels, vision.patch_size, vision.patch_size)
        return super().hf_shape(config, path, shape)


NAMES = AriaNames(
    (FusedExperts("language_model.model.layers.{layer}.mlp.experts", "fc1.weight", "fc2.weight", transposed=False),),
    trunk="language_model.model",
    head="language_model.lm_head",
)
IN_MEMORY = AriaNames(
    (FusedExperts("model.language_model.layers.{layer}.mlp.experts", transposed=False),),
    trunk="model.language_model",
    root="model.",
)
