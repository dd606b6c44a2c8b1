"""Pure numbers over vectors: no model, no file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierexport.base.records import Floats, Source
from tierexport.metrics.topk import TopK, blocks

NEIGHBOURS = 10

Doubles = npt.NDArray[np.float64]


def normalized(vectors: Floats) -> Doubles:
    """Rows scaled to length 1, in float64; a zero row stays zero."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Doubles = wide / np.where(lengths > 0, lengths, 1)
    return unit


def _products(a: Doubles, b: Doubles) -> Doubles:
    found: Doubles = a @ b.T
    return found


def _distances(metric: str) -> Callable[[Doubles, Doubles], Doubles]:
    def found(a: Doubles, b: Doubles) -> Doubles:
        from scipy.spatial.distance import cdist

        distances: Doubles = -cdist(a, b, metric)
        return distances

    return found


@dataclass(frozen=True)
class _Function:
    """A similarity in words, between every two rows, and between rows of the same number; higher is nearer."""

    words: str
    every: Callable[[Doubles, Doubles], Doubles]
    pairs: Callable[[Doubles, Doubles], Doubles]


SIMILARITIES: Mapping[str, _Function] = {
    "cosine": _Function("cosine", _products, lambda a, b: (a * b).sum(1)),
    "dot": _Function("dot product", _products, lambda a, b: (a * b).sum(1)),
    "euclidean": _Function("Euclidean distance", _distances("euclidean"), lambda a, b: -np.linalg.norm(a - b, axis=1)),
    "manhattan": _Function("Manhattan distance", _distances("cityblock"), lambda a, b: -np.abs(a - b).sum(1)),
}
"""By sentence-transformers' names, `similarity_fn_name`."""


@dataclass(frozen=True)
class Similarity:
    """How a model's vectors are compared: by which function, and whether the model brings them to unit length first.

    Where it does, an artifact's vectors are brought to unit length as well: a GGUF's come without.
    """

    name: str = "cosine"
    unit: bool = True

    @staticmethod
    def of(source: Source) -> "Similarity":
        """A model's own."""
        return Similarity(source.similarity, source.normalizes)

    @property
    def words(self) -> str:
        """As reports say it."""
        return SIMILARITIES[self.name].words

    @property
    def lengths_count(self) -> bool:
        """Whether a vector's length changes how it is ranked."""
        return self.name != "cosine" and not self.unit

    def prepared(self, vectors: Floats) -> Doubles:
        """Vectors as they are compared, float64."""
        return vectors.astype(np.float64) if self.lengths_count else normalized(vectors)

    def compared(self, queries: Doubles, documents: Doubles) -> Doubles:
        """Every query with every document, float64 (queries, documents), of prepared vectors."""
        return SIMILARITIES[self.name].every(queries, documents)

    def pairs(self, a: Floats, b: Floats) -> Doubles:
        """Each row of `a` with the same row of `b`, float64 (rows,)."""
        return SIMILARITIES[self.name].pairs(self.prepared(a), self.prepared(b))


COSINE = Similarity()


def cosines(reference: Floats, found: Floats) -> Doubles:
    """Cosine of each row of `found` (texts, dimensions) to the same row of `reference`."""
    return COSINE.pairs(reference, found)


def neighbours_kept(reference: Floats, found: Floats, count: int = NEIGHBOURS, similarity: Similarity = COSINE) -> Doubles:
    """Share of each text's `count` nearest other texts, by the similarity, that stay among them, (texts,)."""
    nearest = (_nearest(each, count, similarity) for each in (reference, found))
    kept = [set(a) & set(b) for a, b in zip(*nearest, strict=True)]
    return np.array([len(each) / count for each in kept])


def _nearest(vectors: Floats, count: int, similarity: Similarity) -> npt.NDArray[np.int64]:
    best = TopK(len(vectors), min(count, len(vectors)), np.float64)
    prepared = similarity.prepared(vectors)
    for rows in blocks(len(vectors)):
        scores = similarity.compared(prepared[rows], prepared)
        scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = -np.inf  # itself
        best.add(rows, np.arange(len(vectors)), scores)
    return best.rows
