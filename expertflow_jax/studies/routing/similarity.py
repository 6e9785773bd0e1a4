"""Do prompts of one kind take like routes? Routing signatures within and across labels (2603.11114), and baselines.

A signature is a prompt's use of the experts of every layer. Two baselines say what would be seen without any such
structure: labels dealt out anew (permutation), and routes drawn anew from each layer's load (load balance). A third,
the words of the prompt, says what a reader of the prompt knows without looking at any route.
Axes: N prompts, L MoE layers, E experts, F features, C clusters.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from expertflow_jax.errors import InputError

FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Cosine similarity over pairs of prompts of different clusters.

    Attributes:
      within_mean, within_std: of pairs of one label.
      across_mean, across_std: of pairs of two labels.
      cohens_d: difference of the means over the pooled standard deviation.
    """

    within_mean: float
    within_std: float
    across_mean: float
    across_std: float
    cohens_d: float


@dataclasses.dataclass(frozen=True)
class Pairs:
    """All pairs of prompts that may be compared.

    Attributes:
      first, second: places of the two prompts.
      cosine: similarity of their signatures.
    """

    first: Int[np.ndarray, " pairs"]
    second: Int[np.ndarray, " pairs"]
    cosine: Float64[np.ndarray, " pairs"]

    @classmethod
    def of(cls, signatures: Float[np.ndarray, "N *features"], clusters: Sequence[str]) -> "Pairs":
        """Args: clusters: of each prompt; two of one (questions on one image) share more than their label."""
        flat_NxF = signatures.reshape(len(signatures), -1).astype(np.float64)
        unit_NxF = flat_NxF / np.maximum(np.linalg.norm(flat_NxF, axis=1, keepdims=True), 1e-12)
        cluster = codes_of(clusters)
        first, second = np.triu_indices(len(flat_NxF), k=1)
        apart = cluster[first] != cluster[second]
        first, second = first[apart], second[apart]
        return cls(first, second, (unit_NxF @ unit_NxF.T)[first, second])

    def same(self, codes: Int[np.ndarray, " N"]) -> Bool[np.ndarray, " pairs"]:
        """Whether both have one label; see `codes_of`."""
        return codes[self.first] == codes[self.second]

    def compare(self, labels: Sequence[str]) -> Similarity:
        """Similarity within and across the labels of the N prompts.

        Raises:
          InputError: no pair of one label, or none of two.
        """
        same = self.same(codes_of(labels))
        if not same.any() or same.all():
            raise InputError("routing similarity: needs at least two labels, one of them with two prompts")
        within, across = self.cosine[same], self.cosine[~same]
        return Similarity(
            within_mean=float(within.mean()),
            within_std=float(within.std()),
            across_mean=float(across.mean()),
            across_std=float(across.std()),
            cohens_d=_cohens_d(within.mean(), within.var(), across.mean(), across.var()),
        )

    def permuted(self, labels: Sequence[str], times: int, seed: int) -> Float64[np.ndarray, " times"]:
        """Cohen's d with the labels dealt out anew, `times` times."""
        codes = codes_of(labels)
        rng = np.random.default_rng(seed)
        outcomes = np.zeros(times)
        for place in range(times):
            same = self.same(rng.permutation(codes)).astype(np.float64)
            within, across = _moments(self.cosine, same), _moments(self.cosine, 1 - same)
            outcomes[place] = _cohens_d(*within, *across)
        return outcomes


def codes_of(names: Sequence[str]) -> Int[np.ndarray, " N"]:
    """A number for each distinct name: quicker to compare."""
    return np.unique(np.array(names), return_inverse=True)[1]


def _moments(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean and variance; by sums, since it is done for a million pairs some hundred times."""
    total = weights.sum()
    mean = weights @ values / total
    return float(mean), float(weights @ values**2 / total - mean**2)


def _cohens_d(within_mean: float, within_var: float, across_mean: float, across_var: float) -> float:
    pooled = np.sqrt(max(within_var + across_var, 0.0) / 2)
    return float((within_mean - across_mean) / pooled) if pooled > 1e-9 else 0.0


def by_load(counts: Float[np.ndarray, "N L E"], seed: int) -> Float64[np.ndarray, "N L E"]:
    """Signatures of the same prompts with every expert drawn by its layer's load: as balanced, and without structure.

    Args:
      counts: how many tokens of each prompt chose each expert.
    """
    rng = np.random.default_rng(seed)
    load_LxE = counts.sum(0, dtype=np.float64)
    load_LxE /= np.maximum(load_LxE.sum(-1, keepdims=True), 1)
    drawn = np.zeros(counts.shape)
    for layer, load_E in enumerate(load_LxE):
        choices_N = counts[:, layer].sum(-1).astype(np.int64)
        drawn[:, layer] = rng.multinomial(choices_N, load_E) if load_E.any() else 0
    return drawn


def classify(
    features: Float[np.ndarray, "N *features"], labels: Sequence[str], clusters: Sequence[str], seed: int
) -> Float64[np.ndarray, " folds"]:
    """Accuracy of a logistic regression that tells the labels apart, on each of `FOLDS` folds: a cluster is wholly in
    one fold, and labels are as frequent in each. (2603.11114: cross-validated logistic regression on signatures.)

    Raises:
      InputError: a label has too few clusters to be in every fold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat_NxF = features.reshape(len(features), -1).astype(np.float32)
    names, group = np.array(labels), np.array(clusters)
    for label in np.unique(names):
        if len(np.unique(group[names == label])) < FOLDS:
            raise InputError(f"routing of {label!r}: fewer than {FOLDS} images or questions; raise `sequences`")
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-3, max_iter=1000))
    return cross_val_score(model, flat_NxF, names, groups=group, cv=folds)


def most_frequent(labels: Sequence[str]) -> float:
    """Accuracy of the best guess without looking: the share of the most frequent label."""
    return float(np.unique(np.array(labels), return_counts=True)[1].max() / len(labels))


def word_counts(prompts: Sequence[Int[np.ndarray, " tokens"]]) -> Float64[np.ndarray, "N F"]:
    """How often each token stands in each prompt; tokens that no prompt has are left out."""
    tokens, places = np.unique(np.concatenate(list(prompts)), return_inverse=True)
    rows = np.repeat(np.arange(len(prompts)), [len(prompt) for prompt in prompts])
    counts = np.zeros((len(prompts), len(tokens)))
    np.add.at(counts, (rows, places), 1)
    return counts
