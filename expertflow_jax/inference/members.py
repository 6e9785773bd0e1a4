"""What goes through the layers: a batch's running state, its part in a step, and what the step is found to have chosen.

Axes: B sequences, T new tokens, S cache length, L MoE layers, E experts, K top-k, D model width.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from expertflow_jax.processing.batching import PromptBatch


@dataclasses.dataclass
class StepRecord:
    """What one batch chose and asked for in one super-step.

    Attributes:
      phase: "prefill" or "decode".
      super_step: number of the super-step, which the records of all its members share.
      batch: number of the batch, see `Sequences`.
      lengths: valid new tokens.
      expert_ids: the router's choice, -1 on padding and where a token does not go through a layer.
      needed: experts that the router asked for.
      speculative: next-router probabilities, where they were to be recorded.
    """

    phase: str
    super_step: int
    batch: int
    lengths: Int[np.ndarray, "B"]
    expert_ids: Int[np.ndarray, "B T L K"]
    needed: Bool[np.ndarray, "L E"]
    speculative: Float[np.ndarray, "B T L E"] | None


def needed_by_super_step(records: list[StepRecord]) -> list[Bool[np.ndarray, "L E"]]:
    """What each super-step's members asked for together, in order."""
    together: dict[int, np.ndarray] = {}
    for record in records:
        asked = together.setdefault(record.super_step, np.zeros_like(record.needed))  # [L, E]
        asked |= record.needed
    return list(together.values())


@dataclasses.dataclass
class Sequences:
    """The running state of a batch: KV cache and how far each sequence has come.

    Attributes:
      kv: keys and values of each layer, each [B, S, Hkv, Dh].
      lengths: tokens in the cache.
      next_position: M-RoPE position of the next token.
      batch: number of the batch, in the order in which the session started them.
      visits: by phase, the MoE layers that each new token goes through (see `PromptBatch.visits`); None: all.
      empty: makes the same state as it was before the first token.
    """

    kv: list[tuple[jax.Array, jax.Array]]
    lengths: Int[np.ndarray, "B"]
    next_position: Int[np.ndarray, "B"]
    batch: int
    visits: dict[str, Bool[np.ndarray, "B T L"]] | None
    empty: Callable[[], "Sequences"]

    @property
    def nbytes(self) -> int:
        """Device bytes of the KV cache."""
        return sum(k.nbytes + v.nbytes for k, v in self.kv)

    @property
    def room(self) -> int:
        """S of the last layer."""
        return self.kv[-1][0].shape[1]


@dataclasses.dataclass(frozen=True)
class Member:
    """One batch's part in a super-step.

    Attributes:
      phase: "prefill" or "decode".
      sequences: its state, which the step brings forward.
      x: input embeddings [B, T, D].
      positions: M-RoPE positions of the new tokens.
      lengths: valid new tokens.
      visual: DeepStack features [n, N_image_tokens, D] and which of them each token takes, int32 [B, T].
      image: which new tokens are of an image; None: none is.
    """

    phase: str
    sequences: Sequences
    x: jax.Array
    positions: Int[np.ndarray, "3 B T"]
    lengths: Int[np.ndarray, "B"]
    visual: tuple[jax.Array, np.ndarray | None] | None = None
    image: Bool[np.ndarray, "B T"] | None = None

    @staticmethod
    def prefill(batch: PromptBatch, sequences: Sequences, x: jax.Array, deepstack: jax.Array | None) -> "Member":
        """A batch whose prompts are to be read: `x` and `deepstack` as `InferenceSession.embed` gives them."""
        visual = None if deepstack is None else (deepstack, batch.image_index)
        image = None if batch.image_index is None else batch.image_index >= 0
        return Member("prefill", sequences, x, batch.positions, batch.lengths, visual, image)

    @staticmethod
    def decode(sequences: Sequences, x: jax.Array, active: Bool[np.ndarray, "B"]) -> "Member":
        """A batch of which each active sequence reads one token: x [B, 1, D]."""
        positions = np.broadcast_to(sequences.next_position[None, :, None], (3, len(active), 1))
        return Member("decode", sequences, x, np.ascontiguousarray(positions), active.astype(np.int32))

    @property
    def visits(self) -> Bool[np.ndarray, "B T L"] | None:
        """The MoE layers that each of its new tokens goes through; None: all."""
        return None if self.sequences.visits is None else self.sequences.visits[self.phase]

    @property
    def tokens_by_layer(self) -> Int[np.ndarray, "L"] | int:
        """How many of its new tokens go through each MoE layer; one number if all do."""
        if self.visits is None:
            return int(self.lengths.sum())
        new_BxT = np.arange(self.x.shape[1]) < self.lengths[:, None]
        return (self.visits & new_BxT[..., None]).sum((0, 1))

    @property
    def followers_by_layer(self) -> Int[np.ndarray, "L"] | int:
        """The same of the tokens that follow each active sequence's last."""
        active_B = self.lengths > 0
        if self.sequences.visits is None:
            return int(active_B.sum())
        return (self.sequences.visits["decode"][:, 0] & active_B[:, None]).sum(0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T and S: what its compiled stages depend on."""
        return self.x.shape[0], self.x.shape[1], self.sequences.room

    def advance(self) -> None:
        """The step has run: its tokens are in the cache."""
        self.sequences.lengths = self.sequences.lengths + self.lengths
        if self.phase == "decode":
            self.sequences.next_position = self.sequences.next_position + self.lengths
