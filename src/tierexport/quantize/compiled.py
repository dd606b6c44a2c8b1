"""What numba's compiled rounding knows of a grid, and what all of it does with a grid's levels and scales.

grids.py in compiled form, one value or one row at a time. The torch path through grids.py, scales.py, gptq.py and descent.py
is the reference: tests compare what both reach. Sums may be taken in any order, so that columns are added side by side.
"""

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tierexport.base.compiling import compiler
from tierexport.base.records import Floats
from tierexport.quantize.grids import Grid, lookup_of

Number: TypeAlias = Any
"""A float32: numba gives every function types of its own, which Python's can't name."""

PRECISIONS = {"float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}
"""Bits of the significand, and the exponent of the least value above zero, of the types that scales are stored in."""

compiled = compiler("tierexport.quantize.compiled_gptq", {"reassoc", "contract", "nsz", "arcp"})
"""Sums may be taken in another order."""

LARGEST = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}


class CompiledGrid(NamedTuple):
    """A Grid as compiled code takes it. `lookup`: the level nearest to each half step, float32, empty where there is no table.
    `multiple`: the largest multiple of a super-block's scale, 0 where each block stores its own scale, which then has
    `bits` of significand, `least` as its least exponent, and `largest` as its largest value.
    """

    low: np.float32
    high: np.float32
    lookup: Floats
    affine: bool
    multiple: np.float32
    whole: bool
    bits: int
    least: int
    largest: float


@functools.cache
def compiled_grid(grid: Grid) -> CompiledGrid:
    """A grid as compiled code takes it."""
    bits, least = PRECISIONS[grid.precision]
    lookup = lookup_of(grid.table).numpy() if grid.table else np.zeros(0, np.float32)
    return CompiledGrid(
        low=np.float32(grid.low),
        high=np.float32(grid.high),
        lookup=lookup,
        affine=grid.affine,
        multiple=np.float32(grid.largest_multiple if grid.super_block > 1 else 0),
        whole=grid.integer_offset,
        bits=bits,
        least=least,
        largest=LARGEST[grid.precision],
    )


@compiled
def levels_of(values: Floats, scale: Number, offset: Number, grid: CompiledGrid, levels: Floats) -> None:
    """Put the level nearest to each of a row's values into `levels`; the first everywhere where the scale is 0."""
    inverse = np.float32(0) if scale == 0 else np.float32(1) / scale
    if grid.lookup.size:
        for column in range(values.size):
            levels[column] = looked_up((values[column] - offset) * inverse, grid)
    else:
        for column in range(values.size):
            levels[column] = min(max(np.rint((values[column] - offset) * inverse), grid.low), grid.high)


@compiled
def level_of(value: Number, grid: CompiledGrid) -> Number:
    """The level nearest to a value that is given in units of the scale."""
    if grid.lookup.size:
        return looked_up(value, grid)
    return min(max(np.rint(value), grid.low), grid.high)


@compiled
def looked_up(value: Number, grid: CompiledGrid) -> Number:
    """The level of a table that is nearest to a value."""
    half = min(max(math.floor(np.float32(2) * value), np.float32(2) * grid.low), np.float32(2) * grid.high)
    return grid.lookup[int(half - np.float32(2) * grid.low)]


@compiled
def as_stored(value: Number, grid: CompiledGrid) -> Number:
    """A value as the grid's precision stores it: to the nearest, ties to even, and at most its largest."""
    value = min(max(float(value), -grid.largest), grid.largest)
    if value == 0 or grid.bits == 24:
        return np.float32(value)
    _, exponent = math.frexp(value)
    unit = math.ldexp(1.0, max(exponent - grid.bits, grid.least))
    return np.float32(np.rint(value / unit) * unit)


@compiled
def storable(
    scale: Number, offset: Number, super_scale: Number, super_offset: Number, grid: CompiledGrid
) -> tuple[Number, Number]:
    """The nearest scale and offset that can be stored; `super_scale`, `super_offset`: the super-block's, if any."""
    if grid.multiple > 0:
        lowest = np.float32(0) if grid.affine else -grid.multiple
        scales = np.float32(0) if super_scale == 0 else min(max(np.rint(scale / super_scale), lowest), grid.multiple)
        offsets = (
            np.float32(0) if super_offset == 0 else min(max(np.rint(-offset / super_offset), np.float32(0)), grid.multiple)
        )
        return np.float32(super_scale * scales), np.float32(-(super_offset * offsets))
    scale = as_stored(scale, grid)
    if grid.whole:
        zero = np.float32(0) if scale == 0 else min(max(np.rint(offset / scale), -grid.high), -grid.low)
        return scale, np.float32(scale * zero)
    return scale, as_stored(offset, grid)
