"""Do image tokens spread over more experts than text tokens do? Per layer, at equal numbers of tokens.

Every measure stands beside what it is when the tokens of each prompt are called image and text at random.
Axes: n tokens, L MoE layers, E experts, K top-k.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int

from expertflow_jax.errors import InputError
from expertflow_jax.routing.trace import RoutingTrace

DEDICATED = 0.9  # an expert is one kind's if it has so much of its load from it, both kinds weighted alike


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The prompt tokens of a trace, one after the other.

    Attributes:
      experts: what each chose; -1 for none.
      sequence: whose token it is.
      image: whether it is of an image.
      num_experts: E.
    """

    experts: Int[np.ndarray, "n L K"]
    sequence: Int[np.ndarray, " n"]
    image: Bool[np.ndarray, " n"]
    num_experts: int

    @classmethod
    def of(cls, trace: RoutingTrace, image: Bool[np.ndarray, "N T"]) -> "Tokens":
        """Args: image: which tokens of the trace are of an image."""
        sequence, position = np.nonzero(trace.token_mask("prompt"))
        return cls(trace.experts[sequence, position], sequence, image[sequence, position], trace.num_experts)


@dataclasses.dataclass(frozen=True)
class Spread:
    """How far image and text tokens spread; float64 [L] each.

    Attributes:
      image_entropy, text_entropy: of the kind's use of the experts, in bits.
      image_distinct, text_distinct: experts that a prompt's tokens of the kind use, at as many tokens of either.
      difference: mean of image_distinct - text_distinct over prompts.
      difference_p: share of random kinds with a difference as far from zero, two-sided.
      divergence: Jensen and Shannon's, between the kinds' uses, in bits; 1 if they share no expert.
      divergence_random: 95th percentile of the same of random kinds.
      image_experts, text_experts: share of the experts that are dedicated to the kind, see `DEDICATED`.
    """

    image_entropy: Float64[np.ndarray, " L"]
    text_entropy: Float64[np.ndarray, " L"]
    image_distinct: Float64[np.ndarray, " L"]
    text_distinct: Float64[np.ndarray, " L"]
    difference: Float64[np.ndarray, " L"]
    difference_p: Float64[np.ndarray, " L"]
    divergence: Float64[np.ndarray, " L"]
    divergence_random: Float64[np.ndarray, " L"]
    image_experts: Float64[np.ndarray, " L"]
    text_experts: Float64[np.ndarray, " L"]


def spread(tokens: Tokens, *, times: int, seed: int) -> Spread:
    """Compares the kinds; `times` random kinds stand for no difference.

    Raises:
      InputError: no prompt has tokens of both kinds.
    """
    rng = np.random.default_rng(seed)
    used_nxLxE = _used(tokens)
    pairs = _equal_parts(tokens, rng)
    if not pairs:
        raise InputError("routing by modality: no prompt has both image and text tokens")
    image_PxL, text_PxL = _distinct(used_nxLxE, pairs)
    difference_L = (image_PxL - text_PxL).mean(0)
    shares = _shares(used_nxLxE, tokens.image)
    random_differences, random_divergences = [], []
    for _ in range(times):
        dealt = [_deal(pair, rng) for pair in pairs]
        image, text = _distinct(used_nxLxE, dealt)
        random_differences.append((image - text).mean(0))
        random_divergences.append(_divergence(*_shares(used_nxLxE, _shuffled(tokens, rng))))
    farther = np.abs(np.array(random_differences)) >= np.abs(difference_L)
    both = shares[0] + shares[1]
    image_part = np.divide(shares[0], both, out=np.full_like(both, 0.5), where=both > 0)
    return Spread(
        image_entropy=_entropy(shares[0]),
        text_entropy=_entropy(shares[1]),
        image_distinct=image_PxL.mean(0),
        text_distinct=text_PxL.mean(0),
        difference=difference_L,
        difference_p=(1 + farther.sum(0)) / (1 + times),
        divergence=_divergence(*shares),
        divergence_random=np.percentile(random_divergences, 95, axis=0),
        image_experts=(image_part >= DEDICATED).mean(-1),
        text_experts=(image_part <= 1 - DEDICATED).mean(-1),
    )


Pair = tuple[np.ndarray, np.ndarray]  # as many image as text tokens of one prompt: their places, int64 [m] each


def _used(tokens: Tokens) -> Bool[np.ndarray, "n L E"]:
    count, layers, _ = tokens.experts.shape
    used = np.zeros((count, layers, tokens.num_experts + 1), bool)  # the last one takes -1
    np.put_along_axis(used, tokens.experts, True, axis=2)
    return used[..., :-1]


def _equal_parts(tokens: Tokens, rng: np.random.Generator) -> list[Pair]:
    pairs = []
    for sequence in np.unique(tokens.sequence):
        here = tokens.sequence == sequence
        image, text = (np.flatnonzero(here & kind) for kind in (tokens.image, ~tokens.image))
        size = min(len(image), len(text))
        if size:
            pairs.append((rng.choice(image, size, replace=False), rng.choice(text, size, replace=False)))
    return pairs


def _deal(pair: Pair, rng: np.random.Generator) -> Pair:
    mixed = rng.permutation(np.concatenate(pair))
    return mixed[: len(pair[0])], mixed[len(pair[0]) :]


def _distinct(used_nxLxE: np.ndarray, pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Distinct experts of each pair's image and text tokens, [P, L] each."""
    image, text = (np.array([used_nxLxE[pair[kind]].any(0).sum(-1) for pair in pairs]) for kind in (0, 1))
    return image, text


def _shuffled(tokens: Tokens, rng: np.random.Generator) -> np.ndarray:
    """Kinds bool [n] dealt out anew within each prompt."""
    order = np.lexsort((rng.random(len(tokens.sequence)), tokens.sequence))
    shuffled = np.empty_like(tokens.image)
    shuffled[np.argsort(tokens.sequence, kind="stable")] = tokens.image[order]
    return shuffled


def _shares(used_nxLxE: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each expert's share of the choices of image and of text tokens, [L, E] each."""
    shares = []
    for kind in (image, ~image):
        counts_LxE = used_nxLxE[kind].sum(0).astype(np.float64)
        shares.append(counts_LxE / np.maximum(counts_LxE.sum(-1, keepdims=True), 1))
    return shares[0], shares[1]


def _entropy(share_LxE: np.ndarray) -> np.ndarray:
    return -(share_LxE * np.log2(np.where(share_LxE > 0, share_LxE, 1.0))).sum(-1)


def _divergence(first_LxE: np.ndarray, second_LxE: np.ndarray) -> np.ndarray:
    between = _entropy((first_LxE + second_LxE) / 2) - (_entropy(first_LxE) + _entropy(second_LxE)) / 2
    return np.maximum(between, 0.0)
