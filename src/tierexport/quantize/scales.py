"""Which scales and offsets a block of weights may be rounded by: candidates, each fitted to the levels it leads to.

A candidate's loss is the squared error of its block, each column weighted by how little the columns after it can make up
for its error: 1 / U_jj² with U as in gptq.py.
"""

import torch

from tierexport.quantize.grids import Affine, Grid, divided

TRIED_SCALES = 4
"""Candidates, the best without error feedback, whose loss with error feedback is compared."""

FEWEST_FINE_LEVELS = 100
"""The highest level from which on a grid is so fine that three scales next to the largest weight's are enough."""

SHARES = (1.0, 0.94, 0.88, 0.8, 0.72)
"""How much of a block's range its levels may span, on either side of the middle."""


def candidates(block: torch.Tensor, weights: torch.Tensor, grid: Grid, super_scales: torch.Tensor | None) -> Affine:
    """The storable scales and offsets, float32 (candidates, rows, 1), that are best without error feedback, for each row.

    `block`: float32 (rows, columns); `weights`: float32 (columns,).
    """
    found = grid.storable(_fitted(block, weights, grid), super_scales)
    loss = _loss(block, found, weights, grid)
    chosen = loss.argsort(dim=0, stable=True)[:TRIED_SCALES, :, None]
    return Affine(found.scale.gather(0, chosen), found.offset.gather(0, chosen))


def shared_scales(blocks: torch.Tensor, weights: torch.Tensor, grid: Grid) -> torch.Tensor | None:
    """The scales of a super-block, float32 (2, rows, 1), from the best scale and offset of each of its blocks.

    `blocks`: float32 (rows, columns of the super-block). None where each block stores its own.
    """
    if grid.super_block == 1:
        return None
    columns = [slice(start, start + grid.block) for start in range(0, blocks.shape[1], grid.block)]
    best = [_best(blocks[:, here], weights[here], grid) for here in columns]
    scales, offsets = torch.cat([each.scale for each in best], 1), torch.cat([each.offset for each in best], 1)
    return grid.super_scales(Affine(scales, offsets))


def _best(block: torch.Tensor, weights: torch.Tensor, grid: Grid) -> Affine:
    """The candidate of least loss for each row, (rows, 1), whether it can be stored or not."""
    found = _fitted(block, weights, grid)
    best, every = _loss(block, found, weights, grid).argmin(0), torch.arange(len(block), device=block.device)
    return Affine(found.scale[best, every], found.offset[best, every])


def _loss(block: torch.Tensor, tried: Affine, weights: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Weighted squared error, float32 (candidates, rows), without error feedback."""
    found = tried.values(grid.levels(divided(block - tried.offset, tried.scale)))
    return (weights * (block - found).square()).sum(-1)


def _fitted(block: torch.Tensor, weights: torch.Tensor, grid: Grid) -> Affine:
    """Scales and offsets to try, (candidates, rows, 1), each refitted to the levels it leads to by weighted least squares."""
    start = _ranges(block, grid) if grid.affine else _extremes(block, grid)
    levels = grid.levels(divided(block - start.offset, start.scale))
    through_zero = divided(
        (weights * levels * block).sum(-1, keepdim=True), (weights * levels.square()).sum(-1, keepdim=True)
    )  # the slope where there is no offset
    if not grid.affine:
        return Affine(through_zero, start.offset)
    line = _line(block, weights, levels, start, grid)
    lifted = (line.offset > 0) & (grid.super_block > 1)  # a super-block's offsets are never positive
    return Affine(through_zero.where(lifted, line.scale), line.offset.where(~lifted, 0.0))


def _line(block: torch.Tensor, weights: torch.Tensor, levels: torch.Tensor, start: Affine, grid: Grid) -> Affine:
    """Slope and intercept of the weighted regression of values on levels; `start` where there is none that can be stored."""
    total = weights.sum()
    mean_level = (weights * levels).sum(-1, keepdim=True) / total
    mean_value = (weights * block).sum(-1, keepdim=True) / total
    around = levels - mean_level
    power = (weights * around.square()).sum(-1, keepdim=True)
    slope = divided((weights * around * block).sum(-1, keepdim=True), power)
    flat = levels.amax(-1, keepdim=True) == levels.amin(-1, keepdim=True)  # nothing to fit a slope to
    fitted = mean_value - slope * mean_level
    if grid.integer_offset:
        zero = divided(-fitted, slope)
        flat = flat | (zero < grid.low) | (zero > grid.high)
    return Affine(slope.where(~flat, start.scale), fitted.where(~flat, start.offset))


def _extremes(block: torch.Tensor, grid: Grid) -> Affine:
    """Scales that put the largest weight on the lowest level or on its mirror image, or beyond it; no offsets."""
    largest = block.gather(1, block.abs().argmax(1, keepdim=True)) / grid.low
    scales = factors(grid).to(block.device)[:, None, None] * largest
    return Affine(scales, torch.zeros_like(scales))


def factors(grid: Grid) -> torch.Tensor:
    """The scales to start from, as shares of that which puts the largest weight on the lowest level: float32 (starts,)."""
    if grid.high >= FEWEST_FINE_LEVELS and not grid.table:
        shares = torch.linspace(0.98, 1.0, 3)
    else:
        shares = torch.linspace(0.7 if grid.high < 16 or grid.table else 0.85, 1.1, 9)
    return torch.cat([shares, -shares])


def _ranges(block: torch.Tensor, grid: Grid) -> Affine:
    """Scales and offsets that spread the levels over the block's range, or over less of it on either side."""
    low, high = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
    middle = (low + high) / 2
    shares = torch.tensor(SHARES, device=block.device)
    below, above = (each.reshape(-1, 1, 1) for each in torch.meshgrid(shares, shares, indexing="ij"))
    bottom, top = middle + (low - middle) * below, middle + (high - middle) * above
    if grid.super_block > 1 or grid.integer_offset:
        bottom = bottom.clamp(max=0)  # a super-block's offsets are never positive; a zero point is one of the levels
    if grid.integer_offset:
        top = top.clamp(min=0)
    scale = (top - bottom) / (grid.high - grid.low)
    return Affine(scale, bottom - grid.low * scale)
