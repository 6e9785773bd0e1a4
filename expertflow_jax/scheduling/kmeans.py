"""The paper's scheduler (ExpertFlow, 2410.17954): k-means on routing paths, one cluster per batch.

Plain k-means gives clusters of any size; batches want equal ones, so after Lloyd's iterations the clusters fill up in
rounds: each unplaced sequence asks for the nearest cluster with room, which takes the nearest of those that ask.
Axes: W waiting sequences, L MoE layers, E experts, F = L * E, C clusters (as many as batches).
"""

import warnings

import numpy as np
from jaxtyping import Float, Int

from expertflow_jax.scheduling.base import Scheduler, oldest_first


class KMeansScheduler(Scheduler):
    """Batches are balanced k-means clusters of the signatures."""

    name = "kmeans"

    def _form(self, signatures, sizes, rng):
        # Here, because its import takes a second or more and every command knows this class by name.
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        points_WxF = signatures.reshape(len(signatures), -1)
        clusters = KMeans(len(sizes), n_init=1, max_iter=25, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # windows may hold equal signatures
            distances_WxC = clusters.fit_transform(points_WxF)
        return oldest_first(_balanced(distances_WxC, int(sizes[0])))


def _balanced(distances_WxC: Float[np.ndarray, "W C"], least: int) -> list[Int[np.ndarray, " B"]]:
    """Members of each cluster: `least`, and one more for some."""
    clusters = distances_WxC.shape[1]
    cluster_of = np.full(len(distances_WxC), -1)
    for room in (least, 1):
        _fill(distances_WxC, cluster_of, np.full(clusters, room))
    return [np.flatnonzero(cluster_of == cluster) for cluster in range(clusters)]


def _fill(
    distances_WxC: Float[np.ndarray, "W C"], cluster_of: Int[np.ndarray, " W"], room: Int[np.ndarray, " C"]
) -> None:
    """Places the unplaced (-1 in `cluster_of`) until no sequence or no room is left."""
    while (waiting := np.flatnonzero(cluster_of < 0)).size and room.any():
        open_clusters = np.flatnonzero(room)
        nearest = open_clusters[np.argmin(distances_WxC[np.ix_(waiting, open_clusters)], axis=1)]
        nearest_first = np.lexsort((waiting, distances_WxC[waiting, nearest], nearest))
        waiting, nearest = waiting[nearest_first], nearest[nearest_first]
        turn = np.arange(len(nearest)) - np.searchsorted(nearest, nearest)
        fits = turn < room[nearest]
        cluster_of[waiting[fits]] = nearest[fits]
        room -= np.bincount(nearest[fits], minlength=len(room))
