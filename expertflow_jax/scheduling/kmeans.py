"""The paper's scheduler (ExpertFlow, 2410.17954): k-means on routing paths, one cluster per batch.

Plain k-means gives clusters of any size; batches want equal ones, so after Lloyd's iterations the clusters
fill up in
rounds: each unplaced sequence asks for the nearest cluster with room, which takes the nearest of those that
  ask.
Axes: W waiting sequences, L MoE layers, E experts, C clusters (as many as batches).
"""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from expertflow_jax.scheduling.base import Scheduler, oldest_first


class KMeansScheduler(Scheduler):
    """Batches are balanced k-means clusters of the signatures."""

    name = "kmeans"

    def _form(self, signatures, sizes, rng):
        points = signatures.reshape(len(signatures), -1)
        clusters = KMeans(len(sizes), n_init=1, max_iter=25, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # windows may hold equal signatures
            distances = clusters.fit_transform(points)
        return oldest_first(_balanced(distances, int(sizes[0])))


def _balanced(distances: np.ndarray, least: int) -> list[np.ndarray]:
    """Members of each cluster: `least`, and one more for some. Args: distances: float32 [W, C]."""
    place = np.full(len(distances), -1)
    for room in (least, 1):
        _fill(distances, place, np.full(distances.shape[1], room))
    return [np.flatnonzero(place == cluster) for cluster in range(distances.shape[1])]


def _fill(distances: np.ndarray, place: np.ndarray, room: np.ndarray) -> None:
    """Places the unplaced (-1 in `place`) until no sequence or no `room` [C] is left."""
    while (waiting := np.flatnonzero(place < 0)).size and room.any():
        open_clusters = np.flatnonzero(room)
        wanted = open_clusters[np.argmin(distances[np.ix_(waiting, open_clusters)], axis=1)]
        nearest_first = np.lexsort((waiting, distances[waiting, wanted], wanted))
        waiting, wanted = waiting[nearest_first], wanted[nearest_first]
        turn = np.arange(len(wanted)) - np.searchsorted(wanted, wanted)
        taken = turn < room[wanted]
        place[waiting[taken]] = wanted[taken]
        room -= np.bincount(wanted[taken], minlength=len(room))
