"""How many bytes the device really holds, as the allocator (GPU) or the live buffers (CPU) say."""

import jax


def bytes_in_use(device: jax.Device | None = None) -> int:
    """Bytes that live on the device now.

    With allocator statistics (GPU, TPU) this is the allocator's own figure. The CPU backend keeps none, so there it
    is the sum over live arrays of memory kind `device`, each buffer counted once; scratch space inside a running
    executable is not seen there.
    """
    device = device or jax.local_devices()[0]
    stats = device.memory_stats()
    if stats:
        return int(stats["bytes_in_use"])
    seen: dict[int, int] = {}
    for array in jax.live_arrays():
        if array.is_deleted() or array.sharding.memory_kind not in (None, "device"):
            continue
        try:
            for shard in array.addressable_shards:
                if shard.device == device:
                    seen[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
        except RuntimeError:  # the transfer thread has donated it meanwhile; what it became is an array of its own
            if not array.is_deleted():
                raise
    return sum(seen.values())


def peak_bytes(device: jax.Device | None = None) -> int | None:
    """The allocator's peak since the process began, or None where it keeps none (CPU)."""
    stats = (device or jax.local_devices()[0]).memory_stats()
    return int(stats["peak_bytes_in_use"]) if stats else None
