"""XLA's own caps on a GPU machine, held against what a run needs: pinned host memory and the device's allocator.

Neither knows of a memory plan. Pinned host memory ends at 64 GiB, where Mixtral-8x7B's experts alone take 84; the
allocator ends at 75 % of the card, whatever budget a user states. Both are variables of the environment that XLA reads
once, when its backend starts: until then they are set here where the user has not set them; from then on a need beyond
them is refused, with the variable and the value that would do.
"""

import dataclasses
import importlib.util
import math
import os
import subprocess
from collections.abc import Mapping

from expertflow_jax.errors import InputError
from expertflow_jax.offload.budget import format_bytes

HOST_LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"  # in GiB, whatever its name says
FRACTION, OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
ALLOCATOR = "XLA_PYTHON_CLIENT_ALLOCATOR"
DEFAULT_HOST_LIMIT = 64 * 1024**3
DEFAULT_FRACTION = 0.75
PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")

_GIB = 1024**3
# An expert does not fit into the rest of a region of the pool, of which there are some twenty.
_POOL_SLACK, _POOL_ROOM = 1.02, 2 * _GIB
_FRAGMENTS = 1.01  # of the device's allocator
_CONTEXT = _GIB  # CUDA's context and its libraries, outside the allocator


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a run takes.

    Attributes:
      host_bytes: of pinned host memory.
      device_bytes: of the device, for everything.
    """

    host_bytes: int = 0
    device_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is known of a machine before its backend starts.

    Attributes:
      card_bytes: memory of the smallest GPU; None where nobody says.
      host_bytes: of the machine.
    """

    card_bytes: int | None
    host_bytes: int


def settings_for(needs: Needs, machine: Machine, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set before the backend starts, so that the needs fit; empty where XLA's defaults do.

    Raises:
      InputError: the card or the machine is too small, or the user has set a variable too low.
    """
    settings = {}
    if needs.host_bytes > machine.host_bytes:
        raise InputError(
            f"experts take {format_bytes(needs.host_bytes)} of pinned host memory, the machine has "
            f"{format_bytes(machine.host_bytes)}; state a lower host_memory_budget"
        )
    if needs.host_bytes > host_limit(environment):
        if HOST_LIMIT in environment:
            raise InputError(_host_refusal(needs, environment))
        settings[HOST_LIMIT] = str(_limit_for(needs))
    if machine.card_bytes is None or not _has_fraction(environment):
        return settings
    most = machine.card_bytes - _CONTEXT
    if needs.device_bytes * _FRAGMENTS > most:
        raise InputError(
            f"the plan takes {format_bytes(needs.device_bytes)} of device memory, the card has "
            f"{format_bytes(machine.card_bytes)}, of which {format_bytes(math.floor(most / _FRAGMENTS))} can be had; "
            "state a lower memory_budget or cache_fraction"
        )
    if needs.device_bytes * _FRAGMENTS > _fraction(environment) * machine.card_bytes:
        if name := _named_fraction(environment):
            raise InputError(_device_refusal(needs, name, environment[name], machine.card_bytes))
        settings[FRACTION] = _fraction_for(needs.device_bytes, machine.card_bytes)
    return settings


def settings_of_whole(machine: Machine, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which a command may use the whole machine; those that the user has set stay as they are.

    Nothing is taken by the cap on pinned memory; of the card, the allocator takes its share at the start.
    """
    settings = {}
    if HOST_LIMIT not in environment:
        settings[HOST_LIMIT] = str(max(DEFAULT_HOST_LIMIT, machine.host_bytes) // _GIB)
    if machine.card_bytes is not None and _has_fraction(environment) and _named_fraction(environment) is None:
        settings[FRACTION] = f"{max(DEFAULT_FRACTION, 1 - _CONTEXT / machine.card_bytes):.3f}"
    return settings


def check_running(needs: Needs, limit_bytes: int | None, environment: Mapping[str, str]) -> None:
    """Checks needs against the caps of a backend that has started.

    Args:
      limit_bytes: what the device's allocator may take; None where it has no limit.
      environment: as it was when the backend started.

    Raises:
      InputError: too much is needed; names the variable to set and its value.
    """
    if needs.host_bytes > host_limit(environment):
        raise InputError(_host_refusal(needs, environment))
    if limit_bytes is not None and needs.device_bytes > limit_bytes:
        name = _named_fraction(environment) or FRACTION
        share = _fraction(environment)
        raise InputError(_device_refusal(needs, name, f"{share:g}", math.ceil(limit_bytes / share)))


def prepare(needs: Needs) -> None:
    """Sets what has to be set for a run, or refuses it; see `settings_for` and `check_running`.

    On a machine without a GPU it does nothing.

    Raises:
      InputError: the needs do not fit.
    """
    if backend_runs():
        check(needs)
    elif awaits_gpu(os.environ):
        os.environ.update(settings_for(needs, this_machine(), os.environ))


def check(needs: Needs) -> None:
    """Checks needs against the device that runs; does nothing on a CPU. Starts the backend.

    Raises:
      InputError: as `check_running`.
    """
    import jax  # takes seconds, and `--help` needs none of it

    device = jax.local_devices()[0]
    if device.platform in ("gpu", "cuda"):
        check_running(needs, (device.memory_stats() or {}).get("bytes_limit"), os.environ)


def take_whole_machine() -> None:
    """For a command, which has its machine to itself: raises both caps before the backend starts."""
    if awaits_gpu(os.environ) and not backend_runs():
        os.environ.update(settings_of_whole(this_machine(), os.environ))


def awaits_gpu(environment: Mapping[str, str]) -> bool:
    """Whether a backend that starts would be CUDA's, as far as can be seen without starting it."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return False
    return any(_is_installed(plugin) for plugin in PLUGINS)


def backend_runs() -> bool:
    """Whether JAX has started its backends, after which they read no variable any more."""
    from jax._src import xla_bridge  # there is no public way to ask

    return xla_bridge.backends_are_initialized()


def this_machine() -> Machine:
    """What the system and NVIDIA's driver say."""
    return Machine(_smallest_card(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _is_installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _smallest_card() -> int | None:
    """Memory of the smallest visible GPU in bytes: CUDA numbers cards in another order than the driver's tool."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", visible]
    try:
        lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split()
        return min(int(line) for line in lines) * 1024**2
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def host_limit(environment: Mapping[str, str]) -> int:
    """Bytes of pinned host memory that XLA allows."""
    try:
        return int(environment[HOST_LIMIT]) * _GIB
    except (KeyError, ValueError):  # XLA does not take what is no whole number either
        return DEFAULT_HOST_LIMIT


def _limit_for(needs: Needs) -> int:
    return math.ceil((needs.host_bytes * _POOL_SLACK + _POOL_ROOM) / _GIB)


def _has_fraction(environment: Mapping[str, str]) -> bool:
    """Whether the allocator is one that takes a fraction of the card: others ask the driver for each array."""
    return environment.get(ALLOCATOR, "default").lower() in ("default", "bfc")


def _named_fraction(environment: Mapping[str, str]) -> str | None:
    return next((name for name in (FRACTION, OLD_FRACTION) if environment.get(name)), None)


def _fraction(environment: Mapping[str, str]) -> float:
    name = _named_fraction(environment)
    if name is None:
        return DEFAULT_FRACTION
    try:
        share = float(environment[name])
    except ValueError:
        share = 0.0
    if not share > 0:
        raise InputError(f"{name}={environment[name]!r}: write a fraction of the card's memory, such as 0.9")
    return share


def _fraction_for(device_bytes: int, card_bytes: int) -> str:
    return f"{math.ceil(1000 * device_bytes * _FRAGMENTS / card_bytes) / 1000:.3f}"


def _host_refusal(needs: Needs, environment: Mapping[str, str]) -> str:
    return (
        f"experts take {format_bytes(needs.host_bytes)} of pinned host memory, {HOST_LIMIT} allows "
        f"{format_bytes(host_limit(environment))}; set {HOST_LIMIT}={_limit_for(needs)} before Python starts, or "
        "state a lower host_memory_budget"
    )


def _device_refusal(needs: Needs, name: str, value: str, card_bytes: int) -> str:
    remedy = f"set {name}={_fraction_for(needs.device_bytes, card_bytes)} before Python starts, or state"
    if needs.device_bytes * _FRAGMENTS > card_bytes - _CONTEXT:
        remedy = "the card holds no more: state"
    return (
        f"the plan takes {format_bytes(needs.device_bytes)} of device memory, {name}={value} leaves "
        f"{format_bytes(math.floor(float(value) * card_bytes))} to JAX; {remedy} a lower memory_budget or "
        "cache_fraction"
    )
