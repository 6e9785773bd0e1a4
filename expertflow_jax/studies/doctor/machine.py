"""Which device JAX runs on, and what XLA's caps leave of it."""

import importlib.metadata
import os
import subprocess

import jax

from expertflow_jax import gpu_caps
from expertflow_jax.offload.budget import format_bytes
from expertflow_jax.studies.doctor.findings import Finding

_SMALL_SHARE = 0.8  # of the card, below which a plan for all of it would not fit


def device_finding(device: jax.Device) -> Finding:
    """The device, its driver and JAX's version."""
    version, driver = importlib.metadata.version("jax"), _driver()
    numbers = {"device": device.device_kind, "platform": device.platform, "jax": version, "driver": driver}
    value = f"{device.device_kind}, jax {version}" + (f", driver {driver}" if driver else "")
    if device.platform != "cpu":
        return Finding("device", value, "good", "", numbers)
    if driver is not None or gpu_caps.awaits_gpu(os.environ):
        remedy = (
            "there is a driver or a plugin, but JAX runs on the CPU: pip install 'expertflow-jax[gpu]', and look at "
        )
        return Finding("device", value, "bad", remedy + "JAX_PLATFORMS and JAX's warnings", numbers)
    return Finding("device", value, "cannot tell", "no GPU: the figures below are of this CPU alone", numbers)


def cap_findings(device: jax.Device) -> list[Finding]:
    """What may be pinned, and what the device's allocator may take."""
    if device.platform == "cpu":
        reason = "pinned memory and allocators have caps on a GPU alone"
        return [Finding("caps", "none", "cannot tell", reason)]
    machine = gpu_caps.this_machine()
    host = gpu_caps.host_limit(os.environ)
    enough = host >= min(machine.host_bytes // 2, 4 * gpu_caps.DEFAULT_HOST_LIMIT)
    pinned = Finding(
        "pinned memory",
        f"{format_bytes(host)} of {format_bytes(machine.host_bytes)}",
        "good" if enough else "weak",
        "" if enough else f"models whose experts take more need {gpu_caps.HOST_LIMIT} (in GiB) before Python starts",
        {"limit_bytes": host, "host_bytes": machine.host_bytes},
    )
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None or machine.card_bytes is None:
        return [pinned, Finding("device memory", "no limit is known", "cannot tell", "nvidia-smi does not answer")]
    whole = limit >= _SMALL_SHARE * machine.card_bytes
    return [
        pinned,
        Finding(
            "device memory",
            f"{format_bytes(limit)} of {format_bytes(machine.card_bytes)}",
            "good" if whole else "weak",
            "" if whole else f"a larger memory_budget needs {gpu_caps.FRACTION} before Python starts",
            {"limit_bytes": limit, "card_bytes": machine.card_bytes},
        ),
    ]


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
