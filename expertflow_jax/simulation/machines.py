"""What compute and link take on the virtual clock while the host's own time is measured. Axes: L MoE layers, E experts.

`gpu_machine` is a published GPU at its peaks serving a published MoE layer: attention and each distinct expert are read
from memory once per step, multiplications take their time on top, and experts travel over the GPU's link. Real GPUs are
slower, so the host has more time than here.
"""

import dataclasses
from pathlib import Path

from expertflow_jax.errors import InputError
from expertflow_jax.offload.link import PROFILES, LinkSpec
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.gpus import BYTES_PER_PARAMETER, GPUS, LayerSize


@dataclasses.dataclass(frozen=True)
class Machine:
    """Costs of one layer on one device.

    Attributes:
      name: for tables.
      costs: seconds of the stages.
      link: experts travel over it.
      expert_bytes: of one expert.
    """

    name: str
    costs: ComputeCosts
    link: LinkSpec
    expert_bytes: int


def gpu_machine(gpu: str, layer: LayerSize, predictor_bytes: int = 0) -> Machine:
    """A GPU of `simulation.gpus` with experts of this layer.

    Args:
      predictor_bytes: of the predictor's parameters as `Predictor.nbytes` counts them, in float32; they are read once
        per step and multiplied with each token. 0: it takes no time.

    Raises:
      InputError: there is no such GPU.
    """
    if gpu not in GPUS:
        raise InputError(f"config key gpu: {gpu!r} is none of {', '.join(GPUS)}")
    device = GPUS[gpu]
    read, multiply = device.memory_gigabytes_per_second * 1e9, device.teraflops * 1e12
    attention = layer.d_model * layer.head_dim * (2 * layer.heads + 2 * layer.kv_heads)
    nothing = Line(0.0, 0.0)
    costs = ComputeCosts(
        attend=Line(attention * BYTES_PER_PARAMETER / read, 2 * attention / multiply),
        experts=Line(0.0, layer.expert_bytes / multiply),  # two operations for each parameter's two bytes
        per_expert=layer.expert_bytes / read,
        head=nothing,
        vision=nothing,
        predictor=Line(predictor_bytes / read, predictor_bytes / 2 / multiply),
    )
    return Machine(gpu, costs, LinkSpec(*PROFILES[device.link], profile=device.link), layer.expert_bytes)


def recorded_machine(costs: str, link: str, expert_bytes: int) -> Machine:
    """A machine whose stages were measured by `eval.calibrate`.

    Raises:
      InputError: no such file, or no such link.
    """
    return Machine(Path(costs).stem, ComputeCosts.load(costs), LinkSpec.parse(link), expert_bytes)
