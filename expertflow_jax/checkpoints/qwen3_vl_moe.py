"""Name table of Qwen3-VL-MoE; the patch embedding is a Conv3d there and a matrix here.

The hub's files (written by transformers 4.57) hold experts as [E, D, 2F] and [E, F, D], those that transformers 5
writes as [E, 2F, D] and [E, D, F]. D == 2F makes the first pair of shapes equal and F == D the second, but never both,
so the two together tell the layouts apart. Axes: E experts, D model width, F expert width.
"""

from expertflow_jax.checkpoints.names import LEAVES, DecoderNames, FusedExperts, Path, Shape
from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig


class Qwen3VLMoeNames(DecoderNames):
    """The decoder's names with those of the vision tower."""

    def stacks(self, config: Qwen3VLMoeConfig) -> dict[str, tuple[str, int]]:  # type: ignore[override]
        layers = {f"text_config.{key}": stack for key, stack in super().stacks(config).items()}
        return layers | {"vision_config.depth": ("model.visual.blocks", config.vision.depth)}

    def hf_name(self, path: Path) -> str:
        head, *rest, leaf = (str(part) for part in path)
        if head != "vision":
            return super().hf_name(path)
        if rest[0] == "patch_embed":
            rest = ["patch_embed", "proj"]
        elif rest[0] == "deepstack_mergers":
            rest[0] = "deepstack_merger_list"
        elif rest[0] == "blocks" and rest[2] in ("qkv", "proj"):
            rest.insert(2, "attn")
        return ".".join(["model.visual", *rest, LEAVES[leaf]])

    def hf_shape(self, config: Qwen3VLMoeConfig, path: Path, shape: Shape) -> Shape:  # type: ignore[override]
        if path[:2] == ("vision", "patch_embed") and path[-1] == "kernel":
            vision = config.vision
            return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        return super().hf_shape(config, path, shape)


_EXPERTS = "model.language_model.layers.{layer}.mlp.experts"

NAMES = Qwen3VLMoeNames(
    experts=(FusedExperts(_EXPERTS), FusedExperts(_EXPERTS, transposed=False)), trunk="model.language_model"
)
