"""Searching packed vectors without decoding all of them at once: cosines with unquantized queries, or Hamming distances."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tierexport.errors import VectorError
from tierexport.records import Floats
from tierexport.vectors.codecs import Bytes, Codec, unit, unpack
from tierexport.vectors.storage import to_faiss

CHUNK = 16_384
"""Vectors that are unpacked together."""

Indices = npt.NDArray[np.int64]


class Index:
    """Packed documents, uint8 (documents, bytes), and the length of each, so that scores are cosines."""

    def __init__(self, codec: Codec, codes: Bytes) -> None:
        self.codec, self.codes = codec, codes
        lengths = [np.linalg.norm(self._undone(values), axis=1) for values in self._chunks()]
        self._lengths: Floats = np.concatenate(lengths) if lengths else np.zeros(0, np.float32)

    def scores(self, queries: Floats, quantized: bool = False) -> Iterator[Floats]:
        """Cosines float32 (queries, documents of a chunk), chunk after chunk.

        Queries are taken as they are (asymmetric), or through the codec as the documents were.
        """
        ours = self._directions(queries, quantized)
        scale, offset = self.codec.line
        weights, constant = (ours * scale).T.copy(), (ours @ offset)[:, None]
        for start in range(0, len(self.codes), CHUNK):
            numbers = unpack(self.codes[start : start + CHUNK], self.codec.level, self.codec.width)
            found = (numbers.astype(np.float32) @ weights).T + constant  # so nothing is decoded, and BLAS does the work
            yield found / _divisors(self._lengths[start : start + len(numbers)])

    def search(self, queries: Floats, count: int, quantized: bool = False) -> tuple[Floats, Indices]:
        """The `count` best documents of each query, best first: cosines and rows, both (queries, count)."""
        count = self._count(count)
        best = np.zeros((len(queries), 0), np.float32)
        rows = np.zeros((len(queries), 0), np.int64)
        start = 0
        for found in self.scores(queries, quantized):
            if best.shape[1] < count:
                best = np.concatenate([best, found], 1)
                rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)], 1)
                chosen = _top(best, count)
                best, rows = np.take_along_axis(best, chosen, 1), np.take_along_axis(rows, chosen, 1)
            else:
                better = found > best[:, -1:]  # what only equals the last came later, and few are left of each chunk
                for query in np.flatnonzero(better.any(1)):
                    columns = np.flatnonzero(better[query])
                    scores = np.concatenate([best[query], found[query, columns]])
                    order = np.argsort(-scores, kind="stable")[:count]
                    best[query], rows[query] = scores[order], np.concatenate([rows[query], start + columns])[order]
            start += found.shape[1]
        return best, rows

    def hamming(self, queries: Floats, count: int, rescored: int = 0) -> tuple[Floats, Indices]:
        """The nearest binary codes, through faiss: distances in bits and rows, (queries, count), nearest first.

        With `rescored`, so many times as many are found, and the best of them by cosine with the unquantized query come
        back, with those cosines. Raises VectorError for another level.
        """
        if self.codec.level != "binary":
            raise VectorError(f"Hamming distances are of binary codes, not of {self.codec.level}")
        count = self._count(count)
        distances, rows = self._bits.search(self.codec.encode(queries), min(count * max(rescored, 1), len(self.codes)))
        if not rescored:
            return distances.astype(np.float32), rows
        ours = self._directions(queries, False)
        values = self._values(self.codes[rows.reshape(-1)]).reshape(*rows.shape, -1)
        cosines = np.einsum("qd,qkd->qk", ours, values) / _divisors(self._lengths[rows])
        order = _top(cosines, count)
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)

    def _count(self, count: int) -> int:
        if count < 1 or not len(self.codes):
            raise VectorError(f"can't find {count} of {len(self.codes)} vectors")
        return min(count, len(self.codes))

    def _directions(self, queries: Floats, quantized: bool) -> Floats:
        """Queries of unit length, as the codec counts, rotated but not scaled to each vector's own range."""
        if quantized:
            found = self._undone(self._values(self.codec.encode(unit(queries))))
            found = found if self._widened is None else found @ self._widened
        else:
            found = self.codec.prepared(queries)
        return unit(found)

    @functools.cached_property
    def _bits(self) -> Any:
        """The codes as faiss holds them, a copy that is made by the first search."""
        return to_faiss(self.codec, self.codes)

    @property
    def _widened(self) -> Floats | None:
        """The rotation where it makes more numbers of a vector than it has dimensions: lengths then change on the way back."""
        return self.codec.rotation if self.codec.width > self.codec.dimensions else None

    def _undone(self, values: Floats) -> Floats:
        return values if self._widened is None else values @ self._widened.T

    def _values(self, codes: Bytes) -> Floats:
        return self.codec.values(unpack(codes, self.codec.level, self.codec.width))

    def _chunks(self) -> Iterator[Floats]:
        for start in range(0, len(self.codes), CHUNK):
            yield self._values(self.codes[start : start + CHUNK])


def _divisors(lengths: Floats) -> Floats:
    """Lengths to divide by: a zero vector stays one."""
    return np.where(lengths > 0, lengths, np.float32(1)).astype(np.float32)


def _top(scores: Floats, count: int) -> Indices:
    """Columns of the greatest scores of each row, greatest first; ties go to the first, as in a full sort."""
    count = min(count, scores.shape[1])
    least = np.partition(scores, -count, 1)[:, -count] if count else np.zeros(len(scores))
    found = np.empty((len(scores), count), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        columns = np.flatnonzero(values >= bound)  # count of them, or more where the last ties
        found[row] = columns[np.argsort(-values[columns], kind="stable")[:count]]
    return found
