"""The link from host to device: what it carries, what the engine makes of it, and what it holds up."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.store import pinned_memory
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.studies.doctor.findings import Finding, graded
from expertflow_jax.studies.doctor.model import RandomModel

SMALL = np.zeros(64, np.int32)  # what a step uploads: positions, lengths, rows


class Link:
    """Copies from pinned host memory onto one device, timed."""

    def __init__(self, device: jax.Device, nbytes: int, repeats: int):
        """
        Args:
          nbytes: of one large copy.
          repeats: of each measurement; medians count.
        """
        self.device = device
        self.nbytes = nbytes
        self.repeats = repeats
        numbers = np.random.default_rng(0).integers(0, 255, nbytes, np.uint8)
        self._large = jax.device_put(numbers, pinned_memory(device))
        self._memory = jax.sharding.SingleDeviceSharding(device, memory_kind="device")
        jax.block_until_ready(self._large)

    def copy(self) -> jax.Array:
        """A large copy that has been started."""
        return jax.device_put(self._large, self._memory)

    def copy_seconds(self) -> float:
        """Of one large copy alone."""
        return self._median(lambda: jax.block_until_ready(self.copy()))

    def upload_seconds(self, behind_copy: bool) -> float:
        """Until a small array is on the device, alone or while a large copy is under way."""
        seconds = []
        for _ in range(self.repeats + 1):
            large = self.copy() if behind_copy else None
            begin = time.perf_counter()
            jax.block_until_ready(jax.device_put(SMALL, self._memory))
            seconds.append(time.perf_counter() - begin)
            jax.block_until_ready(large)
        return float(np.median(seconds[1:]))

    def overlap(self) -> float:
        """Share of the shorter that is hidden when the device computes for about as long as a copy takes: 0 to 1."""
        alone = self.copy_seconds()
        compute = self._compute_for(alone)
        computing = self._median(lambda: jax.block_until_ready(compute()))

        def both() -> None:
            copier = threading.Thread(target=lambda: jax.block_until_ready(self.copy()))
            copier.start()
            jax.block_until_ready(compute())
            copier.join()

        together = self._median(both)
        return float(np.clip((alone + computing - together) / min(alone, computing), 0, 1))

    def _compute_for(self, seconds: float) -> Callable[[], jax.Array]:
        """Matrix products that take about so long."""
        side = 1024
        x = jax.device_put(np.eye(side, dtype=np.float32), self._memory)
        chain = jax.jit(lambda x, count: jax.lax.fori_loop(0, count, lambda _, y: y @ x, x))
        one = self._median(lambda: jax.block_until_ready(chain(x, jnp.int32(1))))
        ten = self._median(lambda: jax.block_until_ready(chain(x, jnp.int32(11))))
        count = jnp.int32(max(1, round(10 * seconds / max(ten - one, 1e-6))))
        return lambda: chain(x, count)

    def _median(self, call: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(self.repeats + 1):  # the first one warms up
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        return float(np.median(seconds[1:]))


def engine_bandwidth(model: RandomModel, repeats: int) -> float:
    """Bytes per second of experts that the engine brings in while nothing else runs: layer after layer, none there."""
    store, num_experts = model.store, model.store.num_experts
    experts = np.arange(num_experts, dtype=np.int32)
    engine = new_engine(store, Variant.of("on_demand"), num_experts, "direct", RealClock(), form=model.stages.form)
    with engine:
        begin = time.perf_counter()
        for _ in range(repeats):
            engine.begin_step(None)
            for layer in range(store.num_layers):
                for _ in engine.rounds(layer, experts):
                    pass  # they have arrived, and nothing reads them
            engine.end_step()
        seconds = time.perf_counter() - begin
        return float(engine.stats()["bytes_transferred"]) / seconds


def link_findings(link: Link, model: RandomModel) -> list[Finding]:
    """Bandwidth, the engine's share of it, what a small upload waits for, and overlap with compute."""
    copying = link.copy_seconds()
    raw, engine = link.nbytes / copying, engine_bandwidth(model, link.repeats)
    alone, behind = link.upload_seconds(False), link.upload_seconds(True)
    hidden, share, delay = link.overlap(), engine / raw, max(0.0, behind - alone)
    return [
        Finding(
            "link, pinned",
            f"{raw / 1e9:.1f} GB/s",
            graded(raw / 1e9, 20, 10),
            "" if raw >= 20e9 else "PCIe 4.0 x16 carries 25 GB/s: look at the slot's lanes, and at the NUMA node",
            {"bytes_per_second": raw, "copy_bytes": link.nbytes},
        ),
        Finding(
            "the engine's share",
            f"{share:.2f} ({engine / 1e9:.1f} GB/s)",
            graded(share, 0.8, 0.5),
            "" if share >= 0.8 else "the host is slower than the link: fewer processes beside it, or larger experts",
            {"bytes_per_second": engine, "share": share, "expert_bytes": model.store.expert_bytes},
        ),
        Finding(
            "upload behind a copy",
            f"{delay * 1e3:.2f} ms later (copy {copying * 1e3:.1f} ms)",
            graded(-delay, -0.3e-3, -1e-3),
            "" if delay <= 0.3e-3 else "small copies wait for large ones: pieces of at most 16 MB wait less",
            {"alone_seconds": alone, "behind_seconds": behind, "copy_seconds": copying},
        ),
        Finding(
            "overlap",
            f"{hidden:.2f} of the shorter is hidden",
            graded(hidden, 0.8, 0.5),
            "" if hidden >= 0.8 else "copies do not run beside compute: without that, prefetching gains nothing",
            {"overlap": hidden},
        ),
    ]
