"""What comes of the batches of a cell, one by one.

Axes: B examples of a batch, V vocabulary, T tokens, L MoE layers, E experts.
"""

import base64
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from expertflow_jax.inference.members import StepRecord, needed_by_super_step


class Answer(NamedTuple):
    """What came of one example; see `execution.Execution`."""

    text: str
    logits: Float[np.ndarray, " V"]
    digest: str
    nats: Float[np.ndarray, " T"] | None = None


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """What came of a batch, and of the super-steps since the batch before ended.

    Attributes:
      examples: indices of its examples.
      texts, logits, digests, nats: of each of them, see `execution.Execution`; `nats` is empty unless teacher-forced.
      needed: experts that each super-step asked for.
      asked: by number of the batch, experts that it asked for in these steps.
      tokens: processed.
    """

    examples: Int[np.ndarray, "B"]
    texts: list[str]
    logits: Float[np.ndarray, "B V"]
    digests: list[str]
    nats: list[Float[np.ndarray, "T"]]
    needed: list[Bool[np.ndarray, "L E"]]
    asked: dict[int, Bool[np.ndarray, "L E"]]
    tokens: int

    @staticmethod
    def of(examples: np.ndarray, answers: Sequence[Answer], records: Sequence[StepRecord]) -> "BatchResult":
        """Args: records: of all steps since the batch before ended, of whichever batch."""
        asked: dict[int, np.ndarray] = {}  # [L, E] each
        for record in records:
            union = asked.setdefault(record.batch, np.zeros_like(record.needed))
            union |= record.needed
        return BatchResult(
            examples,
            [answer.text for answer in answers],
            np.stack([answer.logits for answer in answers]),
            [answer.digest for answer in answers],
            [answer.nats for answer in answers if answer.nats is not None],
            needed_by_super_step(list(records)),
            asked,
            sum(int(record.lengths.sum()) for record in records),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; arrays as base64."""
        return {
            "examples": self.examples.tolist(),
            "texts": self.texts,
            "logits": _packed(self.logits),
            "digests": self.digests,
            "nats": [_packed(nats) for nats in self.nats],
            "needed": [_packed(asked) for asked in self.needed],
            "asked": {str(number): _packed(asked) for number, asked in self.asked.items()},
            "tokens": self.tokens,
        }

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "BatchResult":
        """What `to_json` gave; raises ValueError, TypeError or KeyError for anything else."""
        return BatchResult(
            np.array(row["examples"], np.int64),
            row["texts"],
            _unpacked(row["logits"]),
            row["digests"],
            [_unpacked(nats) for nats in row["nats"]],
            [_unpacked(asked) for asked in row["needed"]],
            {int(number): _unpacked(asked) for number, asked in row["asked"].items()},
            row["tokens"],
        )


def _packed(array: np.ndarray) -> dict[str, Any]:
    bits = np.packbits(array) if array.dtype.kind == "b" else array
    data = base64.b64encode(zlib.compress(bits.tobytes(), 1)).decode()
    return {"dtype": str(array.dtype), "shape": array.shape, "data": data}


def _unpacked(packed: Mapping[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(packed["dtype"]), tuple(packed["shape"])
    data = zlib.decompress(base64.b64decode(packed["data"]))
    if dtype.kind == "b":
        return np.unpackbits(np.frombuffer(data, np.uint8), count=int(np.prod(shape))).astype(bool).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape)
