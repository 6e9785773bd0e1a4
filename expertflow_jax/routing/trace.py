"""Routing traces: which experts every token of a set of sequences chose at every MoE layer.

A token's *routing path* is int32 [L, K]; a trace holds the paths of N sequences, right-padded with -1. Whatever has no
expert is -1: padding, a token that a capacity limit dropped, or a layer that never sees the token (an encoder token at
a decoder layer). Everything about routing is computed from traces: statistics, the predictor's training data
(ExpertFlow, 2410.17954: pairs of tokens and routing paths), replay against a virtual clock.
Axes: N sequences, T tokens, L MoE layers, E experts, K top-k, M ranked experts of a forecast.
"""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, whole_file

FORMAT = "expertflow_jax.routing_trace/1"
PHASES = ("all", "prompt", "decode")


@dataclasses.dataclass(frozen=True, eq=False)
class RoutingTrace:
    """Routing paths of N sequences.

    Attributes:
      experts: the chosen experts in router order; -1 where there is none.
      num_experts: E, experts per layer.
      lengths: tokens of each sequence that were run (prompt and decoded); default: up to the last token that has an
        expert.
      prompt_lengths: tokens of the prompt (run in the prefill); default: `lengths`, no decoding.
      weights: the router's probability of each chosen expert.
      speculative: experts of layer l ranked by applying router l to the hidden state of the MoE layer before it
        (2312.17238, speculative loading); -1 at the first layer, which has no layer before.
      ids: N names of the sequences; default "0", "1", ...
      groups: N labels (question type, task category); default "".
      model_fingerprint: see `routing.fingerprint`; "" if unknown.

    Raises:
      InputError: shapes disagree, an expert lies outside [-1, E), or lengths are impossible.
    """

    experts: Int32[np.ndarray, "N T L K"]
    num_experts: int
    lengths: Int32[np.ndarray, " N"] = None  # type: ignore[assignment]
    prompt_lengths: Int32[np.ndarray, " N"] = None  # type: ignore[assignment]
    weights: Float32[np.ndarray, "N T L K"] | None = None
    speculative: Int32[np.ndarray, "N T L M"] | None = None
    ids: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    model_fingerprint: str = ""

    def __post_init__(self) -> None:
        experts = np.asarray(self.experts)
        if experts.ndim != 4 or not np.issubdtype(experts.dtype, np.integer):
            raise InputError(f"trace: experts must be integers [N, T, L, K], got {experts.dtype} {experts.shape}")
        n, t = experts.shape[:2]
        self._set("experts", experts.astype(np.int32, copy=False))
        self._set("num_experts", int(self.num_experts))
        if self.lengths is None:
            present = (experts >= 0).any((2, 3))
            last = t - np.argmax(present[:, ::-1], axis=1) if t else np.zeros(n, np.int32)
            self._set("lengths", np.where(present.any(1), last, 0))
        if self.prompt_lengths is None:
            self._set("prompt_lengths", self.lengths)
        for name in ("lengths", "prompt_lengths"):
            self._set(name, np.asarray(getattr(self, name)).astype(np.int32))
        self._set("ids", tuple(str(i) for i in self.ids) or tuple(str(i) for i in range(n)))
        self._set("groups", tuple(str(g) for g in self.groups) or ("",) * n)
        if self.weights is not None:
            self._set("weights", np.asarray(self.weights, np.float32))
        if self.speculative is not None:
            self._set("speculative", np.asarray(self.speculative).astype(np.int32, copy=False))
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        n, t, layers, _ = self.experts.shape
        for name, shape in (("lengths", (n,)), ("prompt_lengths", (n,)), ("ids", (n,)), ("groups", (n,))):
            value = getattr(self, name)
            actual = value.shape if isinstance(value, np.ndarray) else (len(value),)
            if actual != shape:
                raise InputError(f"trace: {name} has shape {actual}, expected {shape}")
        if self.weights is not None and self.weights.shape != self.experts.shape:
            raise InputError(f"trace: weights {self.weights.shape} do not match experts {self.experts.shape}")
        if self.speculative is not None and (
            self.speculative.ndim != 4 or self.speculative.shape[:3] != (n, t, layers)
        ):
            raise InputError(f"trace: speculative {self.speculative.shape}, expected {(n, t, layers)} and ranks")
        for name in ("experts", "speculative"):
            values = getattr(self, name)
            if values is not None and values.size and not -1 <= values.min() <= values.max() < self.num_experts:
                raise InputError(
                    f"trace: {name} range over [{values.min()}, {values.max()}]; the model has experts 0 to "
                    f"{self.num_experts - 1} (-1 for none)"
                )
        if n and not (self.lengths.min() >= 0 and self.lengths.max() <= t):
            raise InputError(f"trace: lengths range over [{self.lengths.min()}, {self.lengths.max()}], axis T is {t}")
        if np.any(self.prompt_lengths > self.lengths) or np.any(self.prompt_lengths < 0):
            raise InputError("trace: a prompt is longer than its sequence")
        padding = np.arange(t) >= self.lengths[:, None]
        if np.any(self.experts[padding] >= 0):
            raise InputError("trace: a token beyond its sequence's length has experts; pad with -1")

    def __len__(self) -> int:
        return self.experts.shape[0]

    @property
    def num_layers(self) -> int:
        return self.experts.shape[2]

    @property
    def top_k(self) -> int:
        return self.experts.shape[3]

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    def token_mask(self, phase: str = "all") -> Bool[np.ndarray, "N T"]:
        """The tokens of a phase: "all", "prompt" (run in the prefill) or "decode" (one per step)."""
        if phase not in PHASES:
            raise InputError(f"phase {phase!r}: choose one of {', '.join(PHASES)}")
        position = np.arange(self.experts.shape[1])
        mask = position < (self.prompt_lengths if phase == "prompt" else self.lengths)[:, None]
        return mask & (position >= self.prompt_lengths[:, None]) if phase == "decode" else mask

    def select(self, index: np.ndarray | Sequence[int] | slice) -> "RoutingTrace":
        """The sequences at `index` (integers, a boolean mask or a slice), in that order."""
        chosen = np.arange(len(self))[index]
        return dataclasses.replace(
            self,
            experts=self.experts[chosen],
            lengths=self.lengths[chosen],
            prompt_lengths=self.prompt_lengths[chosen],
            weights=None if self.weights is None else self.weights[chosen],
            speculative=None if self.speculative is None else self.speculative[chosen],
            ids=tuple(self.ids[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
        )

    @classmethod
    def concatenate(cls, traces: Sequence["RoutingTrace"]) -> "RoutingTrace":
        """Joins traces of the same model along N, padding T to the longest.

        `weights` and `speculative` are there if every part has them. Raises InputError if L, K, E or the fingerprints
        differ, or if there is nothing to join.
        """
        if not traces:
            raise InputError("trace: nothing to concatenate")
        first = traces[0]
        for trace in traces[1:]:
            for name in ("num_layers", "top_k", "num_experts", "model_fingerprint"):
                if getattr(trace, name) != getattr(first, name):
                    raise InputError(
                        f"trace: parts differ in {name}: {getattr(first, name)!r} and {getattr(trace, name)!r}"
                    )
        longest = max(trace.experts.shape[1] for trace in traces)

        def join(name: str, fill: float) -> np.ndarray | None:
            parts = [getattr(trace, name) for trace in traces]
            if any(part is None for part in parts) or len({part.shape[3] for part in parts}) > 1:
                return None
            return np.concatenate([pad_tokens(part, longest, fill) for part in parts])

        return cls(
            experts=np.concatenate([pad_tokens(trace.experts, longest, -1) for trace in traces]),
            num_experts=first.num_experts,
            lengths=np.concatenate([trace.lengths for trace in traces]),
            prompt_lengths=np.concatenate([trace.prompt_lengths for trace in traces]),
            weights=join("weights", 0.0),
            speculative=join("speculative", -1),
            ids=tuple(i for trace in traces for i in trace.ids),
            groups=tuple(g for trace in traces for g in trace.groups),
            model_fingerprint=first.model_fingerprint,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The trace as plain arrays (no pickled objects), experts in the narrowest integer type that holds them."""
        narrow = np.min_scalar_type(-max(self.num_experts, 1))
        arrays = {
            "format": np.array(FORMAT),
            "experts": self.experts.astype(narrow),
            "num_experts": np.array(self.num_experts, np.int64),
            "lengths": self.lengths,
            "prompt_lengths": self.prompt_lengths,
            "ids": np.array(self.ids, dtype=np.str_),
            "groups": np.array(self.groups, dtype=np.str_),
            "model_fingerprint": np.array(self.model_fingerprint),
        }
        if self.weights is not None:
            arrays["weights"] = self.weights
        if self.speculative is not None:
            arrays["speculative"] = self.speculative.astype(narrow)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], source: str = "arrays") -> "RoutingTrace":
        """Inverse of `to_arrays`; raises InputError, naming `source`, when entries are missing or do not fit."""
        missing = {"format", "experts", "num_experts", "lengths", "prompt_lengths"} - set(arrays)
        if missing:
            raise InputError(f"{source}: not a routing trace, {', '.join(sorted(missing))} missing; record it again")
        if str(arrays["format"]) != FORMAT:
            raise InputError(f"{source}: format {arrays['format']}, this version reads {FORMAT}; record it again")
        try:
            return cls(
                experts=arrays["experts"],
                num_experts=int(arrays["num_experts"]),
                lengths=arrays["lengths"],
                prompt_lengths=arrays["prompt_lengths"],
                weights=arrays.get("weights"),
                speculative=arrays.get("speculative"),
                ids=tuple(arrays["ids"].tolist()) if "ids" in arrays else (),
                groups=tuple(arrays["groups"].tolist()) if "groups" in arrays else (),
                model_fingerprint=str(arrays.get("model_fingerprint", "")),
            )
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"{source}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the trace to `path` (.npz, compressed), all or nothing."""
        write_npz(path, self.to_arrays(), compressed=True)

    @classmethod
    def load(cls, path: str | Path) -> "RoutingTrace":
        """Reads a trace; raises InputError if the file is missing, truncated, corrupt or something else."""
        return cls.from_arrays(read_npz(path), str(path))


def pad_tokens(
    array: Shaped[np.ndarray, "N T *rest"], length: int, fill: float
) -> Shaped[np.ndarray, "N length *rest"]:
    """[N, T, ...] -> [N, length, ...], filled up on the right."""
    widths = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=fill)


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes arrays to an .npz file whole or not at all; raises InputError where it cannot be written."""
    make_folder(Path(path).parent)
    with whole_file(path) as file:
        save = np.savez_compressed if compressed else np.savez
        save(file, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; never unpickles. Raises InputError if it is missing or unreadable."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); record it first or correct the path") from error
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"{path}: truncated or not an .npz file of plain arrays; record it again") from error
