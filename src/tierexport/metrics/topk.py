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

    Of equal scores that of the lower row comes first, in whatever order documents are added. Nothing else is kept, so memory
    is queries × count, and what one call of `add` is given. Scores must not be NaN.
    """

    def __init__(self, queries: int, count: int, dtype: "npt.DTypeLike" = np.float32) -> None:
        self.scores: Scores = np.zeros((queries, count), dtype)
        self.rows: Indices = np.zeros((queries, count), np.int64)
        self._filled = np.zeros(queries, np.int64)

    def add(self, queries: slice, rows: Indices, found: Scores) -> None:
        """Scores (queries, documents) of the documents in these rows, int64 (documents,), or (queries, documents) where each
        query has its own.
        """
        if not found.size:
            return
        rows = np.broadcast_to(rows, found.shape)
        best, kept, filled = self.scores[queries], self.rows[queries], int(self._filled[queries].min())
        count = best.shape[1]
        better = _better(best[:, -1:], kept[:, -1:], rows, found) if filled == count else np.ones(found.shape, bool)
        for query in np.flatnonzero(better.any(1)):
            columns = np.flatnonzero(better[query])
            scores = np.concatenate([best[query, :filled], found[query, columns]])
            names = np.concatenate([kept[query, :filled], rows[query, columns]])
            chosen = _first(scores, names, count)
            best[query, : len(chosen)], kept[query, : len(chosen)] = scores[chosen], names[chosen]
        self._filled[queries] = min(filled + found.shape[1], count)


def _better(least: Scores, last: Indices, rows: Indices, found: Scores) -> npt.NDArray[np.bool_]:
    """Which of the scores (queries, documents) come before the last of each query, (queries, 1)."""
    better: npt.NDArray[np.bool_] = found > least
    if rows.min() < last.max():
        better |= (found == least) & (rows < last)
    return better


def _first(scores: Scores, rows: Indices, count: int) -> Indices:
    """Where the `count` greatest of some scores are, greatest first, equal ones by their rows; (scores,) both."""
    places = np.arange(len(scores))
    if len(scores) > count:
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return places[np.lexsort((rows[places], -scores[places]))[:count]]


def greatest(scores: Scores, count: int) -> Indices:
    """Columns of the `count` greatest scores of each row, greatest first; ties go to the first, as in a full sort."""
    count = min(count, scores.shape[1])
    least = np.partition(scores, -count, 1)[:, -count] if count else np.zeros(len(scores))
    found = np.empty((len(scores), count), np.int64)
    for row, (values, bound) in enumerate(zip(scores, least, strict=True)):
        columns = np.flatnonzero(values >= bound)  # count of them, or more where the last ties
        found[row] = columns[np.argsort(-values[columns], kind="stable")[:count]]
    return found
