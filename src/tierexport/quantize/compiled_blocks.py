"""gptq.py and descent.py compiled, for one block of columns of some rows; the products between blocks are left to BLAS."""

import numpy as np

from tierexport.base.records import Floats
from tierexport.quantize.compiled import CompiledGrid, Number, compiled, level_of, storable
from tierexport.quantize.compiled_scales import best_candidates, best_unrestricted
from tierexport.quantize.descent import LEAST_DETERMINANT
from tierexport.quantize.scales import TRIED_SCALES


@compiled
def super_scales(
    left: Floats, weights: Floats, width: int, factors: Floats, grid: CompiledGrid, scales: Floats, offsets: Floats
) -> None:
    """The best scale and offset of each block of a super-block, whether they can be stored or not.

    `left`: float32 (rows, columns of the super-block), its blocks `width` wide; `scales`, `offsets`: take (rows, blocks).
    """
    levels = np.empty(width, np.float32)
    for row in range(left.shape[0]):
        for number in range(scales.shape[1]):
            here = slice(number * width, (number + 1) * width)
            found = best_unrestricted(left[row, here], weights[here], factors, grid, levels)
            scales[row, number], offsets[row, number] = found


@compiled
def feed_back(
    block: Floats,
    feedback: Floats,
    shared: Floats,
    factors: Floats,
    grid: CompiledGrid,
    levels: Floats,
    affine: Floats,
    errors: Floats,
) -> None:
    """Round a block with error feedback inside it, each row by the candidate of least Σ e².

    `block`: float32 (rows, columns); `feedback`: the block's own part of U, transposed; `shared`: the super-block's scales
    (2, rows). `levels`, `errors`: take (rows, columns), `affine` takes scale and offset (2, rows).
    """
    rows, columns = block.shape
    weights, tried = np.empty(columns, np.float32), np.empty((TRIED_SCALES, 3), np.float32)
    for column in range(columns):
        weights[column] = np.float32(1) / (feedback[column, column] * feedback[column, column])
    at, missed = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for row in range(rows):
        number = best_candidates(block[row], weights, shared[:, row], factors, grid, at, tried)
        best = np.float32(np.inf)
        for each in range(number):
            scale, offset = tried[each, 1], tried[each, 2]
            loss = trial(block[row], feedback, scale, offset, best, grid, at, missed)
            if loss < best or each == 0:
                best = loss
                levels[row], errors[row] = at, missed
                affine[0, row], affine[1, row] = scale, offset


@compiled
def trial(
    block: Floats,
    feedback: Floats,
    scale: Number,
    offset: Number,
    most: Number,
    grid: CompiledGrid,
    levels: Floats,
    errors: Floats,
) -> Number:
    """Levels and errors e of a row's block with error feedback inside it; Σ e², broken off where it is beyond `most`."""
    inverse = np.float32(0) if scale == 0 else np.float32(1) / scale
    loss = np.float32(0)
    for column in range(block.size):
        fed = np.float32(0)
        for before in range(column):
            fed += feedback[column, before] * errors[before]
        value = block[column] - fed
        level = level_of((value - offset) * inverse, grid)
        error = (value - level * scale - offset) / feedback[column, column]
        levels[column], errors[column] = level, error
        loss += error * error
        if loss > most:
            break
    return loss


@compiled
def descend(
    levels: Floats, affine: Floats, pull: Floats, hessian: Floats, shared: Floats, grid: CompiledGrid, change: Floats
) -> None:
    """One round of coordinate descent over a block: its scale and offset, then its levels, column after column.

    `levels`, `pull` (R H): float32 (rows, columns); `affine`: scale and offset (2, rows); `hessian`: the block's own part of H;
    `shared` as in `feed_back`. Changes `levels` and `affine`, uses up `pull`, and puts the change of the values into
    `change`, (rows, columns).
    """
    rows, columns = levels.shape
    through, across = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for column in range(columns):
        across[column] = hessian[column].sum()
    for row in range(rows):
        scale, offset = affine[0, row], affine[1, row]
        for column in range(columns):
            change[row, column] = -(levels[row, column] * scale + offset)
        new_scale, new_offset = rescaled(
            levels[row], scale, offset, pull[row], hessian, across, shared[0, row], shared[1, row], grid, through
        )
        by_scale, by_offset = new_scale - scale, new_offset - offset
        if by_scale != 0 or by_offset != 0:
            for column in range(columns):
                pull[row, column] -= by_scale * through[column] + by_offset * across[column]
        affine[0, row], affine[1, row] = new_scale, new_offset
        relevel(levels[row], new_scale, new_offset, pull[row], hessian, grid)
        for column in range(columns):
            change[row, column] += levels[row, column] * new_scale + new_offset


@compiled
def rescaled(
    levels: Floats,
    scale: Number,
    offset: Number,
    pull: Floats,
    hessian: Floats,
    across: Floats,
    super_scale: Number,
    super_offset: Number,
    grid: CompiledGrid,
    through: Floats,
) -> tuple[Number, Number]:
    """The storable scale and offset that are best for a row's levels, where better than those it has.

    `across`: H's row sums. `through` takes the levels times H.
    """
    through[:] = 0
    for other in range(levels.size):
        if levels[other] != 0:
            for column in range(levels.size):
                through[column] += levels[other] * hessian[other, column]
    power, by_level, by_one = np.float32(0), np.float32(0), np.float32(0)
    mixed, ones = np.float32(0), np.float32(0)
    for column in range(levels.size):
        power += through[column] * levels[column]
        mixed += through[column]
        ones += across[column]
        by_level += levels[column] * pull[column]
        by_one += pull[column]
    by_scale, by_offset = np.float32(0), np.float32(0)
    if grid.affine:
        determinant = power * ones - mixed * mixed
        if determinant > np.float32(LEAST_DETERMINANT) * power * ones:
            by_scale = (by_level * ones - mixed * by_one) / determinant
            by_offset = (power * by_one - mixed * by_level) / determinant
    elif power != 0:
        by_scale = by_level / power
    new_scale, new_offset = storable(scale + by_scale, offset + by_offset, super_scale, super_offset, grid)
    by_scale, by_offset = new_scale - scale, new_offset - offset
    curved = by_scale * by_scale * power + np.float32(2) * by_scale * by_offset * mixed + by_offset * by_offset * ones
    if curved < np.float32(2) * (by_scale * by_level + by_offset * by_one):
        return new_scale, new_offset
    return scale, offset


@compiled
def relevel(levels: Floats, scale: Number, offset: Number, pull: Floats, hessian: Floats, grid: CompiledGrid) -> None:
    """Give each column of a row the level that is best for it, one after the other."""
    inverse = np.float32(0) if scale == 0 else np.float32(1) / scale
    for column in range(levels.size):
        value = levels[column] * scale + offset
        level = level_of((value + pull[column] / hessian[column, column] - offset) * inverse, grid)
        if level != levels[column]:
            by = (level - levels[column]) * scale
            levels[column] = level
            for other in range(levels.size):
                pull[other] -= hessian[column, other] * by
