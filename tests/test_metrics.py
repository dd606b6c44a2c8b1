"""Numbers against independent implementations."""

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from tierexport.metrics.similarity import cosines, neighbours_kept

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
