"""Cells of any width: a table of borders and values for each dimension, from the vectors' own distribution."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierexport.base.records import Floats
from tierexport.metrics.similarity import Doubles

ROUNDS = 50
"""Rounds of Lloyd's iteration at most; a few dozen bring it to rest."""


@dataclass(frozen=True)
class Table:
    """Where each dimension's cells end and what they stand for: `borders`, float32 (width, cells - 1), and `centers`,
    float32 (width, cells), both upwards. A value on a border is in the cell below, as in binary codes.
    """

    borders: Floats
    centers: Floats

    @property
    def low(self) -> Floats:
        """Where the lowest cell would begin if its center were its middle, float32 (width,)."""
        return 2 * self.centers[:, 0] - self.borders[:, 0]

    @property
    def high(self) -> Floats:
        """Where the highest cell would end, likewise."""
        return 2 * self.centers[:, -1] - self.borders[:, -1]

    def values(self, numbers: npt.NDArray[np.uint8]) -> Floats:
        """What the cells stand for, float32 (vectors, width)."""
        width, cells = self.centers.shape
        found: Floats = self.centers.reshape(-1).take(numbers + np.arange(0, width * cells, cells, dtype=np.int32))
        return found


def quantile_table(values: Floats, cells: int) -> Table:
    """Cells that each hold the same share of a dimension's values, float32 (vectors, width), and stand for their mean."""
    columns = _Columns.of(values)
    borders = columns.quantiles(cells)
    return _table(borders, columns.means(borders))


def lloyd_table(values: Floats, cells: int) -> Table:
    """Cells of the least squared error for each dimension's values, float32 (vectors, width).

    Lloyd 1982 (doi 10.1109/TIT.1982.1056489) and Max 1960: each border lies midway between two centers, each center is the
    mean of its cell. From cells of equal shares, round after round until nothing moves.
    """
    columns = _Columns.of(values)
    centers = columns.means(columns.quantiles(cells))
    for _ in range(ROUNDS):
        before, centers = centers, columns.means(_between(centers))
        if np.array_equal(before, centers):
            break
    return _table(_between(centers), centers)


@dataclass(frozen=True)
class _Columns:
    """Values of each dimension in ascending order, float64 (vectors, width), and the sums of the first n, a row more."""

    ordered: Doubles
    sums: Doubles

    @classmethod
    def of(cls, values: Floats) -> "_Columns":
        ordered = np.sort(values.astype(np.float64), 0)
        return cls(ordered, np.concatenate([np.zeros((1, values.shape[1])), ordered.cumsum(0)]))

    def quantiles(self, cells: int) -> Doubles:
        """Borders between cells of equal shares, float64 (width, cells - 1)."""
        return np.quantile(self.ordered, np.arange(1, cells) / cells, axis=0).T

    def means(self, borders: Doubles) -> Doubles:
        """The mean of each cell, float64 (width, cells); an empty one has a border's value."""
        found = np.stack([column.searchsorted(own, "right") for column, own in zip(self.ordered.T, borders, strict=True)])
        ends = np.pad(found, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(self.ordered))))
        counts, sums = np.diff(ends), np.diff(np.take_along_axis(self.sums.T, ends, 1))
        empty = np.concatenate([borders[:, :1], borders], 1)
        return np.where(counts > 0, sums / np.maximum(counts, 1), empty)


def _between(centers: Doubles) -> Doubles:
    """Borders midway between centers, float64 (width, cells - 1)."""
    found: Doubles = (centers[:, 1:] + centers[:, :-1]) / 2
    return found


def _table(borders: Doubles, centers: Doubles) -> Table:
    return Table(*(np.ascontiguousarray(each, np.float32) for each in (borders, centers)))
