"""All measures of a model's routing as one JSON object, from a recorded trace and the prompts it was recorded on.

Axes: N prompts, T tokens, L MoE layers, E experts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from expertflow_jax.errors import InputError
from expertflow_jax.routing.statistics import signatures
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.studies.routing.modality import Tokens, spread
from expertflow_jax.studies.routing.reuse import batch_steps, hit_rates, reuse_distances, working_sets
from expertflow_jax.studies.routing.similarity import (
    FOLDS,
    Pairs,
    by_load,
    classify,
    codes_of,
    most_frequent,
    word_counts,
)

_BINS = np.linspace(0, 1, 51)  # of cosine similarities


@dataclasses.dataclass(frozen=True)
class Sample:
    """Prompts with their routing, in one order.

    Attributes:
      trace: prompts and answers.
      prompts: the prompts' tokens.
      image: which tokens of the trace are of an image.
      labels: labelling -> of each prompt ("task": the benchmark, "group": its question type).
      clusters: prompts of one (the same image, or question) are compared with others alone.
    """

    trace: RoutingTrace
    prompts: Sequence[Int[np.ndarray, " tokens"]]
    image: Bool[np.ndarray, "N T"]
    labels: Mapping[str, Sequence[str]]
    clusters: Sequence[str]


def common_kinds(labels: Sequence[str], fewest: int, labelling: str) -> Int[np.ndarray, " n"]:
    """The prompts whose label at least `fewest` prompts have.

    Raises:
      InputError: fewer than two labels have as many.
    """
    kinds, counts = np.unique(np.array(labels), return_counts=True)
    places = np.flatnonzero(np.isin(labels, kinds[counts >= fewest]))
    if (counts >= fewest).sum() < 2:
        raise InputError(
            f"config key fewest: fewer than two kinds ({labelling}) have {fewest} prompts; lower it, or raise sequences"
        )
    return places


def similarity_measures(sample: Sample, labelling: str, *, fewest: int, permutations: int, seed: int) -> dict[str, Any]:
    """Signatures within and across the labels that have at least `fewest` prompts, of all layers and of each.

    Raises:
      InputError: fewer than two labels have as many.
    """
    labels = np.array(sample.labels[labelling])
    common = common_kinds(labels.tolist(), fewest, labelling)
    chosen, clusters = labels[common].tolist(), np.array(sample.clusters)[common].tolist()
    part = sample.trace.select(common)
    counts_NxLxE = signatures(part, kind="counts", phase="prompt")
    routes_NxLxE = signatures(part, phase="prompt")
    pairs = Pairs.of(routes_NxLxE, clusters)
    observed, same = pairs.compare(chosen), pairs.same(codes_of(chosen))
    permuted = pairs.permuted(chosen, permutations, seed)
    drawn_NxLxE = by_load(counts_NxLxE, seed)

    def accuracy(features: Float[np.ndarray, "N *features"]) -> dict[str, float]:
        scores = classify(features, chosen, clusters, seed)
        return {"mean": float(scores.mean()), "std": float(scores.std())}

    layers = range(part.num_layers)
    return {
        "labels": {name: chosen.count(name) for name in sorted(set(chosen))},
        "prompts": len(common),
        "folds": FOLDS,
        "routes": {**dataclasses.asdict(observed), "accuracy": accuracy(routes_NxLxE)},
        "permuted": {
            "cohens_d_mean": float(permuted.mean()),
            "cohens_d_95": float(np.percentile(permuted, 95)),
            "p": float((1 + (permuted >= observed.cohens_d).sum()) / (1 + permutations)),
        },
        "by_load": {
            **dataclasses.asdict(Pairs.of(drawn_NxLxE, clusters).compare(chosen)),
            "accuracy": accuracy(drawn_NxLxE),
        },
        "words": {"accuracy": accuracy(word_counts([sample.prompts[place] for place in common.tolist()]))},
        "most_frequent": most_frequent(chosen),
        "layers": [
            {
                "cohens_d": Pairs.of(routes_NxLxE[:, layer], clusters).compare(chosen).cohens_d,
                "accuracy": accuracy(routes_NxLxE[:, layer]),
            }
            for layer in layers
        ],
        "within": np.histogram(pairs.cosine[same], _BINS, density=True)[0].tolist(),
        "across": np.histogram(pairs.cosine[~same], _BINS, density=True)[0].tolist(),
        "bins": _BINS.tolist(),
    }


def modality_measures(sample: Sample, *, permutations: int, seed: int) -> dict[str, Any] | None:
    """How far image and text tokens spread (`modality.Spread`); None where no prompt has an image."""
    if not sample.image.any():
        return None
    measured = spread(Tokens.of(sample.trace, sample.image), times=permutations, seed=seed)
    return {key: value.tolist() for key, value in dataclasses.asdict(measured).items()}


def reuse_measures(sample: Sample, *, batch_size: int, cache_sizes: Sequence[int]) -> dict[str, Any]:
    """Working sets, reuse distances and hit rates of the trace in batches, prompts and answers."""
    steps = batch_steps(sample.trace, batch_size)
    needed = np.stack([step.needed for step in steps])
    distances = reuse_distances(needed)
    sizes = np.arange(1, sample.trace.num_experts)
    return {
        "batch_size": batch_size,
        "steps": len(steps),
        "working_sets": {str(window): mean.tolist() for window, mean in working_sets(needed).items()},
        "foretold_by_layer": [[float((of_layer < size).mean()) for size in sizes] for of_layer in distances],
        "hit_rates": [dataclasses.asdict(rate) for rate in hit_rates(steps, distances, cache_sizes)],
    }
