"""k-means against its definition, and the same clusters whatever the last bits of a product."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievo.training.feeds import query_clusters
from retrievo.training.feeds.query_clusters import cluster_queries, k_means


def blobs(count: int, rows: int, dim: int = 8, seed: int = 0, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around some centers, and which."""
    random = np.random.default_rng(seed)
    center = random.integers(0, count, rows)
    vectors = 3 * random.standard_normal((count, dim))[center] + spread * random.standard_normal((rows, dim))
    return vectors.astype(np.float32), center


def found(vectors: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return k_means(vectors.__getitem__, len(vectors), count, seed=seed)


def loss(vectors: np.ndarray, cluster: np.ndarray) -> float:
    """The sum of squared distances to the means."""
    parts = (vectors[cluster == number].astype(np.float64) for number in np.unique(cluster))
    return float(sum(np.square(part - part.mean(axis=0)).sum() for part in parts))


def test_what_lies_together_is_one_cluster() -> None:
    vectors, center = blobs(2, 300)
    cluster = found(vectors, 2)
    assert len(set(zip(center.tolist(), cluster.tolist(), strict=True))) == 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(6, 40), st.integers(0, 99))
def test_at_the_end_every_vector_is_nearest_to_the_mean_of_its_own(count: int, rows: int, seed: int) -> None:
    vectors, _ = blobs(4, rows, dim=3, seed=seed, spread=1.0)
    cluster = found(vectors, count, seed)
    present = np.unique(cluster)
    means = np.stack([vectors[cluster == number].mean(axis=0, dtype=np.float64) for number in present])
    distances = np.square(vectors[:, None] - means).sum(axis=2)
    own = distances[np.arange(rows), np.searchsorted(present, cluster)]
    assert (own <= distances.min(axis=1) + 1e-4).all()
    assert cluster.min() >= 0
    assert cluster.max() < count


def test_rounds_lower_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = blobs(20, 2000, spread=1.0)
    losses = []
    for rounds in (1, 2, 4, 20):
        monkeypatch.setattr(query_clusters, "ROUNDS", rounds)
        losses.append(loss(vectors, found(vectors, 20)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def reversed_order(queries: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(queries[:, ::-1]) @ np.ascontiguousarray(centers[:, ::-1]).T


def in_parts(queries: np.ndarray, centers: np.ndarray) -> np.ndarray:
    halves = (slice(None, 31), slice(31, None))
    parts = [queries[:, half] @ centers[:, half].T for half in halves]
    return parts[0] + parts[1]


def rounded_once(queries: np.ndarray, centers: np.ndarray) -> np.ndarray:
    return (queries.astype(np.float64) @ centers.T.astype(np.float64)).astype(np.float32)


@pytest.mark.parametrize("products", [reversed_order, in_parts, rounded_once])
def test_the_last_bits_of_a_matrix_product_change_no_cluster(
    products: Callable[[np.ndarray, np.ndarray], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    centers, _ = blobs(30, 30, dim=64)
    midway = (centers[:, None] + centers[None, :]).reshape(-1, 64) / 2  # as near to one as to the other
    before, clustered = query_clusters._nearest(midway, centers), found(midway, 20)
    monkeypatch.setattr(query_clusters, "_products", products)
    assert np.array_equal(query_clusters._nearest(midway, centers), before)
    assert np.array_equal(found(midway, 20), clustered)


def test_a_vector_between_two_centers_goes_to_the_first() -> None:
    centers = np.array([[3, 3], [1, 0], [0, 1]], np.float32)
    vectors = np.array([[0.3, 0.3], [0.3, 0.30001], [9, 9]], np.float32)
    assert query_clusters._nearest(vectors, centers).tolist() == [1, 2, 0]


def test_other_seeds_begin_elsewhere() -> None:
    vectors, _ = blobs(10, 500, spread=2.0)
    assert not np.array_equal(found(vectors, 10, seed=0), found(vectors, 10, seed=1))


def test_more_clusters_than_different_vectors_leave_some_empty() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    cluster = found(vectors, 7)
    assert [len(set(cluster[at : at + 5])) for at in (0, 5, 10)] == [1, 1, 1]
    assert len(set(cluster.tolist())) == 3


def test_vectors_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = blobs(3, 100, spread=1.0)
    whole = found(vectors, 3, seed=1)
    sizes: list[int] = []

    def read(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return vectors[rows]

    monkeypatch.setattr(query_clusters, "_ROWS", 16)
    cluster = k_means(read, 100, 3, seed=1)
    assert max(sizes) == 16
    assert np.array_equal(cluster, whole)


def test_topics_are_found_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vectors, _ = blobs(3, 60)
    calls: list[int] = []

    class Vectors:
        input = type("Input", (), {"fingerprint": "f", "path": Path("vectors")})

        def of(self, rows: np.ndarray) -> np.ndarray:
            calls.append(len(rows))
            return vectors[rows]

    rows = np.arange(5, 60)
    first = cluster_queries(Vectors(), rows, 3, seed=0)  # type: ignore[arg-type]
    made = len(calls)
    assert np.array_equal(cluster_queries(Vectors(), rows, 3, seed=0), first)  # type: ignore[arg-type]
    assert len(calls) == made > 0
    for other in (cluster_queries(Vectors(), rows, 4, seed=0), cluster_queries(Vectors(), rows[1:], 3, seed=0)):  # type: ignore[arg-type]
        assert not np.array_equal(other, first)
