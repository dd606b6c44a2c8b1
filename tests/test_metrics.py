"""Numbers against independent implementations."""

import numpy as np
import torch
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors

from tierexport.metrics.relative_error import Changes
from tierexport.metrics.similarity import Similarity, cosines, neighbours_kept
from tierexport.verify.intervals import weighted_interval

RNG = np.random.default_rng(0)


def test_cosines_equal_torchs() -> None:
    a, b = (RNG.normal(size=(50, 16)).astype(np.float32) for _ in range(2))
    expected = torch.cosine_similarity(torch.from_numpy(a).double(), torch.from_numpy(b).double())
    np.testing.assert_allclose(cosines(a, b), expected, rtol=1e-12)


def test_neighbours_kept_equals_scikit_learns() -> None:
    a = RNG.normal(size=(60, 16)).astype(np.float32)
    b = a + 0.5 * RNG.normal(size=a.shape).astype(np.float32)
    found = [NearestNeighbors(n_neighbors=11, metric="cosine").fit(x).kneighbors(x)[1][:, 1:] for x in (a, b)]
    expected = [len(set(x) & set(y)) / 10 for x, y in zip(*found, strict=True)]
    assert 0.3 < np.mean(expected) < 1
    np.testing.assert_allclose(neighbours_kept(a, b), expected)
    assert (neighbours_kept(a, a * 3) == 1).all()


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """By its definition: every two texts' distance, one by one."""
    return float(np.mean(np.sum((b - a) ** 2, axis=1)) / np.mean(pdist(a, "sqeuclidean")))


def unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float64)
    found: np.ndarray = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return found


def test_the_relative_error_is_the_change_over_the_spread() -> None:
    a = (RNG.normal(size=(40, 16)) + 3).astype(np.float32)
    b = a * 1.5 + RNG.normal(scale=0.2, size=a.shape).astype(np.float32)
    found = Changes.between(a, b).relative_error
    assert 0.001 < found < 0.1
    np.testing.assert_allclose(found, relative_error(unit(a), unit(b)), rtol=1e-9)
    longer = Changes.between(a, b, Similarity("dot", unit=False)).relative_error  # lengths count: half as long again
    np.testing.assert_allclose(longer, relative_error(a.astype(np.float64), b.astype(np.float64)), rtol=1e-9)
    assert longer > 10 * found
    assert Changes.between(a, a).relative_error == 0
    np.testing.assert_allclose(Changes.between(a, a[::-1]).relative_error, 40 / 39, rtol=0.06)  # each became another text


def test_its_interval_is_that_of_drawn_texts() -> None:
    a = RNG.normal(size=(40, 16)).astype(np.float32)
    b = a + (RNG.normal(size=a.shape) * RNG.gamma(0.5, 0.3, size=(40, 1))).astype(np.float32)
    changes = Changes.between(a, b)
    low, high = weighted_interval(40, changes.relative_errors)
    assert low < changes.relative_error < high
    texts, moved = unit(a), unit(b) - unit(a)

    def drawn() -> float:
        rows = RNG.integers(40, size=40)
        apart = pdist(texts[rows], "sqeuclidean")
        return float(np.mean(np.sum(moved[rows] ** 2, axis=1)) / np.mean(apart[apart > 0]))  # no text with itself

    np.testing.assert_allclose((low, high), np.percentile([drawn() for _ in range(4000)], [2.5, 97.5]), rtol=0.05)
