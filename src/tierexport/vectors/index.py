"""Searching packed vectors without decoding all of them at once: by the codec's similarity, or Hamming distances."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.metrics.topk import QUERIES, Indices, TopK, blocks, greatest
from tierexport.vectors.arrays import Bytes, Codes, Vectors, as_codes
from tierexport.vectors.codecs import Codec
from tierexport.vectors.packing import check_codes, unpack
from tierexport.vectors.storage import to_faiss

CHUNK = 4096
"""Vectors that are unpacked together: few enough to stay in the processor's cache, and enough for a matrix product."""


class Index:
    """Packed documents, uint8 (documents, bytes), and the length of each: scores are cosines, dot products or distances,
    these negative, so that the greatest is the best.
    """

    def __init__(self, codec: Codec, codes: Codes) -> None:
        """Raises VectorError for what are no codes of the codec."""
        self.codec, self.codes = codec, as_codes(codes)
        check_codes(self.codes, codec.level, codec.width)
        lengths = [np.linalg.norm(self._undone(values), axis=1) for values in self._chunks()]
        self._lengths: Floats = np.concatenate(lengths) if lengths else np.zeros(0, np.float32)

    def scores(self, queries: Vectors, quantized: bool = False) -> Iterator[Floats]:
        """Scores float32 (queries, documents of a chunk), chunk after chunk.

        Queries stay unquantized (asymmetric), or go through the codec as the documents did.
        """
        prepared = self._prepared(queries, quantized)
        return (found for _, _, found in self._scored(prepared, len(prepared)))

    def search(self, queries: Vectors, count: int, quantized: bool = False) -> tuple[Floats, Indices]:
        """The `count` best documents of each query, best first: scores and rows, both (queries, count).

        Equal scores are ordered by row. Memory is bounded by a block of queries · a chunk of documents.
        """
        best = TopK(len(queries), self._count(count))
        for first, rows, found in self._scored(self._prepared(queries, quantized), QUERIES):
            best.add(rows, np.arange(first, first + found.shape[1]), found)
        return best.scores, best.rows

    def _scored(self, prepared: Floats, block: int) -> Iterator[tuple[int, slice, Floats]]:
        """Scores of a block of queries and a chunk of documents, with the chunk's first row and the queries' rows."""
        scale, offset = self.codec.line
        weights, constant = (prepared * scale).T.copy(), (prepared @ offset)[:, None]
        for first in range(0, len(self.codes), CHUNK):
            steps = self.codec.steps(unpack(self.codes[first : first + CHUNK], self.codec.level, self.codec.width))
            lengths = self._lengths[first : first + len(steps)]
            for rows in blocks(len(prepared), block):
                # so nothing is decoded, and BLAS does the work
                found = (steps @ weights[:, rows]).T + constant[rows]
                yield first, rows, self._compared(found, prepared[rows], lengths)

    def _compared(self, products: Floats, prepared: Floats, lengths: Floats) -> Floats:
        """Scores by the codec's similarity, from dot products (queries, documents) and the documents' lengths."""
        if self.codec.similarity == "cosine":
            return products / _divisors(lengths)
        if self.codec.similarity == "dot":
            return products
        squared = np.square(prepared).sum(1)[:, None] + np.square(lengths) - 2 * products
        found: Floats = -np.sqrt(np.maximum(squared, 0))
        return found

    def hamming(self, queries: Vectors, count: int, rescored: int = 0) -> tuple[Floats, Indices]:
        """The nearest binary codes, through faiss: distances in bits and rows, (queries, count), nearest first.

        With `rescored`, so many times as many are found, and the best of them by their score with the unquantized query
        come back, with those scores. Raises VectorError for another level.
        """
        if self.codec.level != "binary":
            raise VectorError(f"Hamming distances are of binary codes, not of {self.codec.level}")
        count = self._count(count)
        distances, rows = self._bits.search(self.codec.encode(queries), min(count * max(rescored, 1), len(self.codes)))
        if not rescored:
            return distances.astype(np.float32), rows
        prepared = self._prepared(queries, False)
        values = self._values(self.codes[rows.reshape(-1)]).reshape(*rows.shape, -1)
        scores = self._compared(np.einsum("qd,qkd->qk", prepared, values), prepared, self._lengths[rows])
        order = greatest(scores, count)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _count(self, count: int) -> int:
        """How many can be found. Raises VectorError for less than one."""
        if count < 1 or not len(self.codes):
            raise VectorError(f"can't find {count} of {len(self.codes)} vectors")
        return min(count, len(self.codes))

    def _prepared(self, queries: Vectors, quantized: bool) -> Floats:
        """Queries rotated but not scaled to each vector's own range, of the length that the codec's similarity counts."""
        if quantized:
            found = self._undone(self._values(self.codec.coded(queries)))
            found = found if self._widened is None else found @ self._widened
        else:
            found = self.codec.prepared(queries)
        return self.codec.scaled(found)

    @functools.cached_property
    def _bits(self) -> Any:
        """The codes as faiss holds them, a copy that is made by the first search."""
        return to_faiss(self.codec, self.codes)

    @property
    def _widened(self) -> Floats | None:
        """The rotation where it makes more numbers of a vector than it has dimensions: lengths then change on the way back."""
        return self.codec.rotation if self.codec.width > self.codec.kept else None

    def _undone(self, values: Floats) -> Floats:
        """Values with the rotation undone where it changes lengths."""
        return values if self._widened is None else values @ self._widened.T

    def _values(self, codes: Bytes) -> Floats:
        """The values of codes before the rotation is undone, float32 (vectors, width)."""
        return self.codec.values(unpack(codes, self.codec.level, self.codec.width))

    def _chunks(self) -> Iterator[Floats]:
        """The values of all documents, chunk after chunk."""
        for start in range(0, len(self.codes), CHUNK):
            yield self._values(self.codes[start : start + CHUNK])


def _divisors(lengths: Floats) -> Floats:
    """Lengths to divide by: a zero vector stays one."""
    return np.where(lengths > 0, lengths, np.float32(1)).astype(np.float32)
