"""Pure numbers over vectors: no model, no file."""

import numpy as np
import numpy.typing as npt

from tierexport.records import Floats

NEIGHBOURS = 10


def normalized(vectors: Floats) -> npt.NDArray[np.float64]:
    """Rows scaled to length 1, in float64; a zero row stays zero."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = wide / np.where(lengths > 0, lengths, 1)
    return unit


def cosines(reference: Floats, found: Floats) -> npt.NDArray[np.float64]:
    """Cosine of each row of `found` (texts, dimensions) to the same row of `reference`."""
    similar: npt.NDArray[np.float64] = (normalized(reference) * normalized(found)).sum(1)
    return similar


def neighbours_kept(reference: Floats, found: Floats, count: int = NEIGHBOURS) -> npt.NDArray[np.float64]:
    """Share of each text's `count` nearest other texts, by cosine, that stay among them, (texts,)."""
    kept = [set(a) & set(b) for a, b in zip(_nearest(reference, count), _nearest(found, count), strict=True)]
    return np.array([len(each) / count for each in kept])


def _nearest(vectors: Floats, count: int) -> npt.NDArray[np.int64]:
    similarity = similarities(vectors)
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def similarities(vectors: Floats) -> npt.NDArray[np.float64]:
    """Cosine of every two rows, float64 (rows, rows)."""
    unit = normalized(vectors)
    product: npt.NDArray[np.float64] = unit @ unit.T
    return product
