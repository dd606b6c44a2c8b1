"""numba's part of a codec: a row's values are scaled, counted in cells and packed into bytes while they are in the cache.

Sums may be taken in any order; all else is IEEE arithmetic as it stands, so that codes don't depend on the machine.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tierexport.base.compiling import compiler
from tierexport.base.records import Floats
from tierexport.vectors.arrays import LARGE, Bytes

Number: TypeAlias = Any
"""A float32: numba gives every function types of its own, which Python's can't name."""

compiled = compiler("tierexport.vectors.compiled", {"reassoc"})


class Cells(NamedTuple):
    """Cells of equal width: float32 (width,) where each dimension's lowest begins, and how wide they are, numbered to `top`;
    or their borders, float32 (borders, width), of which there are none where they are equal.
    """

    low: Floats
    width: Floats
    top: np.float32
    borders: Floats


class Layout(NamedTuple):
    """How numbers are put into bytes: each times its weight, uint32 (count,), their sum is a whole number of `size` bytes, the
    lowest first.
    """

    weights: npt.NDArray[np.uint32]
    size: int


@compiled
def within(value: Number) -> Number:
    """A value within LARGE; NaN stays."""
    return min(max(value, -LARGE), LARGE)


@compiled
def scale_row(row: Floats, to_unit: bool, found: Floats) -> bool:
    """Put a row into `found`, within LARGE, and of unit length where that is asked for; whether it holds NaN.

    A zero row stays zero.
    """
    total = 0.0
    for column in range(row.size):
        value = np.float64(within(row[column]))
        total += value * value
    scale = 1.0 / np.sqrt(total) if to_unit and total > 0 else 1.0
    for column in range(row.size):
        found[column] = np.float32(np.float64(within(row[column])) * scale)
    return total != total


@compiled
def scale_rows(rows: Floats, to_unit: bool, found: Floats) -> int:
    """Scale every row, float32 (rows, columns), as `scale_row` does; the first that holds NaN, or -1 where none does."""
    for row in range(len(rows)):
        if scale_row(rows[row], to_unit, found[row]):
            return row
    return -1


@compiled
def number_row(row: Floats, cells: Cells, numbers: Bytes) -> None:
    """Put the cell of each of a row's values into `numbers`, uint8; a value on a border of `cells.borders` is below it."""
    for column in range(row.size):
        if len(cells.borders):
            numbers[column] = 0
        else:
            cell = (row[column] - cells.low[column]) / cells.width[column]
            numbers[column] = np.uint8(np.int32(min(max(cell, np.float32(0)), cells.top)))
    for border in range(len(cells.borders)):
        for column in range(row.size):
            numbers[column] += row[column] > cells.borders[border, column]


@compiled
def add_up(numbers: Bytes, weights: npt.NDArray[np.uint32], count: int, words: npt.NDArray[np.uint32]) -> None:
    """Put the sums of each `count` numbers, times their weights, into `words`."""
    for word in range(words.size):
        total = np.uint32(0)
        for place in range(count):
            total += np.uint32(numbers[word * count + place]) * weights[place]
        words[word] = total


@compiled
def pack_row(numbers: Bytes, layout: Layout, words: npt.NDArray[np.uint32], codes: Bytes) -> None:
    """Put a row of numbers, uint8 as many as fill all words, into its bytes, `codes`."""
    count = layout.weights.size
    if count == 1:  # counts that the compiler knows, for then it adds up many words at once
        add_up(numbers, layout.weights, 1, words)
    elif count == 2:
        add_up(numbers, layout.weights, 2, words)
    elif count == 4:
        add_up(numbers, layout.weights, 4, words)
    elif count == 5:
        add_up(numbers, layout.weights, 5, words)
    else:
        add_up(numbers, layout.weights, 8, words)
    for place in range(layout.size):
        for word in range((codes.size - place + layout.size - 1) // layout.size):
            codes[word * layout.size + place] = np.uint8(words[word] >> np.uint32(8 * place))


@compiled
def code_rows(rows: Floats, to_unit: bool, cells: Cells, layout: Layout, codes: Bytes) -> int:
    """Put the packed cells of rows, float32 (rows, width), into `codes`, uint8 (rows, bytes), each scaled as `scale_row` does.

    The first row that holds NaN, or -1 where none does.
    """
    words = np.zeros((codes.shape[1] + layout.size - 1) // layout.size, np.uint32)
    numbers = np.zeros(words.size * layout.weights.size, np.uint8)
    scaled = np.empty(rows.shape[1], np.float32)
    for row in range(len(rows)):
        if scale_row(rows[row], to_unit, scaled):
            return row
        number_row(scaled, cells, numbers)
        pack_row(numbers, layout, words, codes[row])
    return -1


@compiled
def pack_rows(rows: Bytes, layout: Layout, codes: Bytes) -> None:
    """Put rows of numbers, uint8 (rows, width), into `codes`, uint8 (rows, bytes)."""
    words = np.zeros((codes.shape[1] + layout.size - 1) // layout.size, np.uint32)
    numbers = np.zeros(words.size * layout.weights.size, np.uint8)
    for row in range(len(rows)):
        numbers[: rows.shape[1]] = rows[row]
        pack_row(numbers, layout, words, codes[row])
