"""A link as slow, beside this machine's compute, as a named GPU's is beside its own: `scaled(GPU)`.

A CPU computes far slower than a GPU, so a real PCIe link would look infinitely fast beside it. What decides how a
cache policy fares is the *ratio* of moving one expert to computing one MoE layer, so the emulated link keeps that:

    ratio(GPU, model) = (expert bytes / the GPU's link bandwidth) / layer seconds on the GPU
    bandwidth here    = expert bytes here / (ratio * layer seconds measured here)

Both layer times are of the same *reference work*: one token (batch 1) of a decode step through attention, router and
its K experts of one MoE layer, everything resident. On the GPU it is max(bytes read / memory bandwidth, 2 * multiplied
parameters / FLOP/s) of the full-size model in bfloat16 at published peaks, on this machine the median resident step
of the scaled model divided by its layers, measured in the same run. A real GPU stays below its peaks, so the scaled
link is, if anything, too slow: harder than life. Latency is scaled alike. The prefill's ratio follows from the same
link; it differs from the GPU's as far as the two machines' FLOPs per byte of memory bandwidth differ.
"""

import dataclasses
import re

from expertflow_jax.errors import InputError
from expertflow_jax.offload.link import PROFILES, LinkSpec

BYTES_PER_PARAMETER = 2  # the full-size models are served in bfloat16


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Published figures: memory bandwidth, dense bfloat16 FLOP/s with float32 sums, and the link it is sold with."""

    memory_gigabytes_per_second: float
    teraflops: float
    link: str  # a profile of `offload.link`


# Data sheets and architecture white papers of NVIDIA: Ampere GA102, A40, Ada, A100, H100, H200, GH200.
GPUS = {
    "rtx3090": Gpu(936, 71, "pcie4x16"),
    "a40": Gpu(696, 149.7, "pcie4x16"),
    "rtx4090": Gpu(1008, 165.2, "pcie4x16"),
    "a100": Gpu(2039, 312, "pcie4x16"),
    "h100": Gpu(3350, 989, "pcie5x16"),
    "h200": Gpu(4800, 989, "pcie5x16"),
    "gh200": Gpu(4000, 989, "nvlink-c2c"),
}


@dataclasses.dataclass(frozen=True)
class LayerSize:
    """One MoE layer of a full-size model.

    Attributes:
      d_model, d_ff, num_experts, top_k: D, F, E, K.
      heads, kv_heads, head_dim: of attention.
      shared_d_ff: width of the experts that every token takes, 0 if none.
      matrices: per expert; 3 for SwiGLU, 2 for Switch's ReLU.
    """

    d_model: int
    d_ff: int
    num_experts: int
    top_k: int
    heads: int
    kv_heads: int
    head_dim: int
    shared_d_ff: int = 0
    matrices: int = 3

    @property
    def expert_bytes(self) -> int:
        return self.matrices * self.d_model * self.d_ff * BYTES_PER_PARAMETER

    @property
    def parameters_read(self) -> int:
        """That one token multiplies: attention, router, K experts and the shared one."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        router = self.d_model * self.num_experts
        experts = self.matrices * self.d_model * (self.top_k * self.d_ff + self.shared_d_ff)
        return attention + router + experts


def layer_seconds(gpu: Gpu, layer: LayerSize) -> float:
    """The reference work on the GPU at its published peaks."""
    read = layer.parameters_read
    by_memory = read * BYTES_PER_PARAMETER / (gpu.memory_gigabytes_per_second * 1e9)
    return max(by_memory, 2 * read / (gpu.teraflops * 1e12))


def transfer_ratio(gpu: Gpu, layer: LayerSize) -> float:
    """Seconds to move one expert over the GPU's link, in units of `layer_seconds`."""
    bandwidth, _ = PROFILES[gpu.link]
    return layer.expert_bytes / (bandwidth * 1e9) / layer_seconds(gpu, layer)


def scaled_link(text: str, layer: LayerSize, expert_bytes: int, seconds_here: float) -> LinkSpec:
    """The link of a config: "scaled(rtx4090)" as defined above, anything else as `LinkSpec.parse` reads it.

    Args:
      layer: of the full-size model.
      expert_bytes: of the model that runs here.
      seconds_here: the reference work, measured on this machine.

    Raises:
      InputError: no such GPU or link.
    """
    name = check_link(text)
    if name is None:
        return LinkSpec.parse(text)
    gpu = GPUS[name]
    seconds = transfer_ratio(gpu, layer) * seconds_here
    latency = PROFILES[gpu.link][1] * seconds_here / layer_seconds(gpu, layer)
    return LinkSpec(expert_bytes / seconds / 1e9, latency, profile=f"scaled({name})")


def check_link(text: str) -> str | None:
    """The GPU of "scaled(GPU)", None for any other link.

    Raises:
      InputError: no such GPU or link.
    """
    match = re.fullmatch(r"\s*scaled\(\s*([\w-]+)\s*\)\s*", text)
    if not match:
        LinkSpec.parse(text)
        return None
    if match[1] not in GPUS:
        raise InputError(f"link {text!r}: no GPU {match[1]!r}; known are {', '.join(GPUS)}")
    return match[1]
