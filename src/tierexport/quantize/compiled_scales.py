"""scales.py compiled, a row at a time: the candidates of a block, each fitted to the levels it leads to by least squares."""

import numpy as np

from tierexport.base.records import Floats
from tierexport.quantize.compiled import CompiledGrid, Number, compiled, levels_of, storable
from tierexport.quantize.scales import SHARES, TRIED_SCALES

NUMBER_OF_SHARES = len(SHARES)
SHARES_TRIED = np.array(SHARES, np.float32)


@compiled
def best_candidates(
    block: Floats, weights: Floats, shared: Floats, factors: Floats, grid: CompiledGrid, levels: Floats, found: Floats
) -> int:
    """The storable scales and offsets that are best without error feedback, best first; how many they are.

    `block` and `weights`: float32 (columns,); `shared`: the super-block's scales of scales and of offsets (2,); `factors`:
    shares of the largest weight, for grids without offsets; `levels`: room for (columns,). `found` takes at most TRIED_SCALES
    rows of loss, scale and offset, float32 (TRIED_SCALES, 3).
    """
    number = 0
    for start in range(starts(factors, grid)):
        scale, offset = refitted(block, weights, start, factors, grid, levels)
        scale, offset = storable(scale, offset, shared[0], shared[1], grid)
        loss = loss_of(block, weights, scale, offset, grid, levels)
        place = number
        while place > 0 and found[place - 1, 0] > loss:
            place -= 1
        if place >= TRIED_SCALES:
            continue
        number = min(number + 1, TRIED_SCALES)
        for later in range(number - 1, place, -1):
            found[later] = found[later - 1]
        found[place, 0], found[place, 1], found[place, 2] = loss, scale, offset
    return number


@compiled
def best_unrestricted(
    block: Floats, weights: Floats, factors: Floats, grid: CompiledGrid, levels: Floats
) -> tuple[Number, Number]:
    """The scale and offset of least loss, whether they can be stored or not."""
    best, best_scale, best_offset = np.float32(np.inf), np.float32(0), np.float32(0)
    for start in range(starts(factors, grid)):
        scale, offset = refitted(block, weights, start, factors, grid, levels)
        loss = loss_of(block, weights, scale, offset, grid, levels)
        if loss < best:
            best, best_scale, best_offset = loss, scale, offset
    return best_scale, best_offset


@compiled
def starts(factors: Floats, grid: CompiledGrid) -> int:
    """How many scales to start from."""
    return NUMBER_OF_SHARES * NUMBER_OF_SHARES if grid.affine else factors.size


@compiled
def loss_of(block: Floats, weights: Floats, scale: Number, offset: Number, grid: CompiledGrid, levels: Floats) -> Number:
    """Weighted squared error without error feedback."""
    levels_of(block, scale, offset, grid, levels)
    loss = np.float32(0)
    for column in range(block.size):
        error = block[column] - levels[column] * scale - offset
        loss += weights[column] * error * error
    return loss


@compiled
def refitted(
    block: Floats, weights: Floats, start: int, factors: Floats, grid: CompiledGrid, levels: Floats
) -> tuple[Number, Number]:
    """The scale and offset that fit best, by weighted least squares, the levels that a start leads to."""
    if grid.affine:
        scale, offset = range_start(block, start, grid)
    else:
        scale, offset = extreme_start(block, start, factors, grid), np.float32(0)
    levels_of(block, scale, offset, grid, levels)
    power, product = np.float32(0), np.float32(0)
    for column in range(block.size):
        power += weights[column] * levels[column] * levels[column]
        product += weights[column] * levels[column] * block[column]
    through_zero = np.float32(0) if power == 0 else product / power
    if not grid.affine:
        return through_zero, offset
    scale, offset = line(block, weights, levels, scale, offset, grid)
    lifted = offset > 0 and grid.multiple > 0  # a super-block's offsets are never positive
    return (through_zero, np.float32(0)) if lifted else (scale, offset)


@compiled
def line(
    block: Floats, weights: Floats, levels: Floats, scale: Number, offset: Number, grid: CompiledGrid
) -> tuple[Number, Number]:
    """Slope and intercept of the weighted regression of values on levels; the start's where there is none to be stored."""
    total, level_sum, value_sum = np.float32(0), np.float32(0), np.float32(0)
    for column in range(block.size):
        total += weights[column]
        level_sum += weights[column] * levels[column]
        value_sum += weights[column] * block[column]
    mean_level, mean_value = level_sum / total, value_sum / total
    power, product = np.float32(0), np.float32(0)
    for column in range(block.size):
        around = levels[column] - mean_level
        power += weights[column] * around * around
        product += weights[column] * around * block[column]
    slope = np.float32(0) if power == 0 else product / power
    fitted = mean_value - slope * mean_level
    if levels.min() == levels.max():  # nothing to fit a slope to
        return scale, offset
    if grid.whole:
        zero = np.float32(0) if slope == 0 else -fitted / slope
        if zero < grid.low or zero > grid.high:
            return scale, offset
    return slope, fitted


@compiled
def extreme_start(block: Floats, start: int, factors: Floats, grid: CompiledGrid) -> Number:
    """A scale that puts the largest weight on the lowest level or on its mirror image, or beyond it."""
    largest = np.float32(0)
    for value in block:
        if abs(value) > abs(largest):
            largest = value
    return factors[start] * (largest / grid.low)


@compiled
def range_start(block: Floats, start: int, grid: CompiledGrid) -> tuple[Number, Number]:
    """A scale and offset that spread the levels over the block's range, or over less of it on either side."""
    low, high = block.min(), block.max()
    middle = (low + high) / np.float32(2)
    bottom = middle + (low - middle) * SHARES_TRIED[start // NUMBER_OF_SHARES]
    top = middle + (high - middle) * SHARES_TRIED[start % NUMBER_OF_SHARES]
    if grid.multiple > 0 or grid.whole:
        bottom = min(bottom, np.float32(0))  # a super-block's offsets are never positive; a zero point is one of the levels
    if grid.whole:
        top = max(top, np.float32(0))
    scale = (top - bottom) / (grid.high - grid.low)
    return scale, bottom - grid.low * scale
