"""The greatest scores of each query among documents that come in chunks. Knows no vectors and no similarity."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Scores = npt.NDArray[Any]

QUERIES = 256
"""Queries that are scored together, so that memory does not grow with their number."""


def blocks(count: int, size: int = QUERIES) -> Iterator[slice]:
    """Rows 0 to `count` in slices of at most `size`."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


class TopK:
    """The `count` greatest scores that each query has had so far, greatest first, and the rows of their documents.

    Of equal scores the row that was added first comes first, as in a stable sort of all of them. Nothing else is kept, so
    memory is queries × count, and what one call of `add` is given. Scores must not be NaN.
    """

    def __init__(self, queries: int, count: int, dtype: "npt.DTypeLike" = np.float32) -> None:
        self.scores: Scores = np.zeros((queries, count), dtype)
        self.rows: Indices = np.zeros((queries, count), np.int64)
        self._filled = np.zeros(queries, np.int64)

    def add(self, queries: slice, first: int, found: Scores) -> None:
        """Scores (queries, documents) of the documents from row `first` on; each query gets documents in their order."""
        if not found.size:
            return
        best, rows, filled = self.scores[queries], self.rows[queries], int(self._filled[queries].min())
        count = best.shape[1]
        if filled < count:
            joined = np.concatenate([best[:, :filled], found], 1)
            chosen = greatest(joined, count)
            before = np.take_along_axis(rows, np.minimum(chosen, count - 1), 1)
            now = chosen.shape[1]
            rows[:, :now] = np.where(chosen < filled, before, first + chosen - filled)
            best[:, :now] = np.take_along_axis(joined, chosen, 1)
            self._filled[queries] = now
            return
        better = found > best[:, -1:]  # what only equals the last came later
        for query in np.flatnonzero(better.any(1)):
            columns = np.flatnonzero(better[query])
            scores = np.concatenate([best[query], found[query, columns]])
            order = np.argsort(-scores, kind="stable")[:count]
            best[query], rows[query] = scores[order], np.concatenate([rows[query], first + columns])[order]


def greatest(scores: Scores, count: int) -> Indices:
    """Columns of the `count` greatest scores of each row, greatest first; ties go to the first, as in a full sort."""
    count = min(count, scores.shape[1])
    least = np.partition(scores, -count, 1)[:, -count] if count else np.zeros(len(scores))
    found = np.empty((len(scores), count), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        columns = np.flatnonzero(values >= bound)  # count of them, or more where the last ties
        found[row] = columns[np.argsort(-values[columns], kind="stable")[:count]]
    return found
