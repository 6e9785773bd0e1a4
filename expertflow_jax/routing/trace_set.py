"""Trace sets on disk: the predictor's training data, a folder of .npz shards with a manifest.

A shard holds the input embeddings of its sequences (token embeddings with image embeddings merged in, which is what the
routing path predictor reads; DESIGN section 8) beside their `RoutingTrace`. The manifest is written last, so an
interrupted recording is recognised as unfinished. Axes: N sequences, B batch, T tokens, D model width.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_json
from expertflow_jax.routing.trace import RoutingTrace, pad_tokens, read_npz, write_npz

FORMAT = "expertflow_jax.trace_set/1"
MANIFEST = "manifest.json"
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True, eq=False)
class TraceSet:
    """A trace set in memory.

    Attributes:
      embeddings: input embeddings, float16 or float32; zero where padded.
      trace: the routing of the same sequences and tokens.
      checksum: hex digest over the shards, for provenance; "" if it was never on disk.
      source: what the recorder wrote about where the sequences come from.
    """

    embeddings: Float[np.ndarray, "N T D"]
    trace: RoutingTrace
    checksum: str = ""
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or self.embeddings.shape[:2] != self.trace.experts.shape[:2]:
            raise InputError(
                f"trace set: embeddings {self.embeddings.shape} do not match experts {self.trace.experts.shape}"
            )

    def __len__(self) -> int:
        return len(self.trace)

    @property
    def width(self) -> int:
        return self.embeddings.shape[2]

    def select(self, index) -> "TraceSet":
        """The sequences at `index` (integers, boolean mask or slice)."""
        chosen = np.arange(len(self))[index]
        return dataclasses.replace(self, embeddings=self.embeddings[chosen], trace=self.trace.select(chosen))

    @classmethod
    def load(cls, path: str | Path) -> "TraceSet":
        """Reads a whole trace set; raises InputError if it is missing, unfinished, corrupt or inconsistent."""
        folder = Path(path)
        manifest = read_manifest(folder)
        digest = hashlib.sha256()
        embeddings, traces = [], []
        for shard in manifest["shards"]:
            file = folder / str(shard["file"])
            arrays = read_npz(file)
            if file.parent.resolve() != folder.resolve() or "embeddings" not in arrays:
                raise InputError(f"{file}: not a shard of this trace set; record it again")
            checksum = _checksum(arrays)
            if checksum != shard["checksum"]:
                raise InputError(f"{file}: contents do not match the manifest's checksum; record it again")
            digest.update(checksum.encode())
            embeddings.append(arrays.pop("embeddings"))
            traces.append(RoutingTrace.from_arrays(arrays, str(file)))
        trace = RoutingTrace.concatenate(traces)
        dtype = np.result_type(*embeddings)
        length = trace.experts.shape[1]
        joined = np.concatenate([pad_tokens(part, length, 0).astype(dtype, copy=False) for part in embeddings])
        return cls(joined, trace, digest.hexdigest()[:32], manifest.get("source", {}))


class TraceSetWriter:
    """Writes a trace set shard by shard: `add` batches, then `close` (or use it as a context manager).

    Args:
      path: folder, created; an earlier trace set in it is replaced.
      source: JSON-able description of where the sequences come from (task, split, seed, ...).
      shard_sequences: sequences per file.
    """

    def __init__(self, path: str | Path, *, source: Mapping[str, Any] | None = None, shard_sequences: int = 4096):
        self._folder = Path(path)
        self._source = dict(source or {})
        self._shard_sequences = shard_sequences
        self._pending: list[tuple[np.ndarray, RoutingTrace]] = []
        self._shards: list[dict[str, Any]] = []
        make_folder(self._folder)
        for old in [self._folder / MANIFEST, *self._folder.glob("shard-*.npz")]:
            old.unlink(missing_ok=True)

    def add(self, embeddings: Float[np.ndarray, "B T D"], trace: RoutingTrace) -> None:
        """One batch: embeddings and their trace. Raises InputError on values that are not finite."""
        values = np.asarray(embeddings)  # [B, T, D]
        values = values.astype(np.float32) if values.dtype != np.float16 else values
        used = trace.token_mask()
        if values.ndim != 3 or values.shape[:2] != used.shape:
            raise InputError(f"trace set: embeddings {values.shape} do not match experts {trace.experts.shape}")
        values = np.where(used[..., None], values, 0)
        largest = np.abs(values).max(initial=0.0)
        if not np.isfinite(largest):
            raise InputError("trace set: an input embedding is not finite; check the model's weights")
        if largest < _FLOAT16_MAX:
            values = values.astype(np.float16)
        self._pending.append((values, trace))
        if sum(len(part) for _, part in self._pending) >= self._shard_sequences:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        trace = RoutingTrace.concatenate([part for _, part in self._pending])
        length = trace.experts.shape[1]
        embeddings = np.concatenate([pad_tokens(values, length, 0) for values, _ in self._pending])
        arrays = {"embeddings": embeddings, **trace.to_arrays()}
        name = f"shard-{len(self._shards):05d}.npz"
        write_npz(self._folder / name, arrays)
        self._shards.append({"file": name, "sequences": len(trace), "checksum": _checksum(arrays)})
        self._pending = []

    def close(self) -> None:
        """Writes what is left and the manifest. Raises InputError if nothing was added."""
        self._flush()
        if not self._shards:
            raise InputError(f"{self._folder}: no sequences recorded")
        manifest = {"format": FORMAT, "source": self._source, "shards": self._shards}
        write_json(self._folder / MANIFEST, manifest, indent=1)

    def __enter__(self) -> "TraceSetWriter":
        return self

    def __exit__(self, kind, value, traceback) -> None:
        if kind is None:
            self.close()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a trace set; raises InputError if there is none or it is malformed."""
    file = Path(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no finished trace set here ({MANIFEST} missing); record it first") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{file}: malformed JSON; record the trace set again") from error
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    known = (
        isinstance(shards, list)
        and shards
        and all(isinstance(s, dict) and {"file", "checksum"} <= set(s) for s in shards)
    )
    if not known or manifest.get("format") != FORMAT:
        raise InputError(f"{file}: not a {FORMAT} manifest; record the trace set again")
    return manifest


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{value.dtype.str}:{value.shape};".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
