"""Coordinate descent on the objective of gptq.py after its error feedback: scales and levels of each block in turns.

With R = W - Q, the objective tr(R H Rᵀ) has the gradient -2 R H with respect to Q. Given the levels, a block's best scale
and offset solve a weighted least squares problem of two unknowns; given those, each column's best value is
q_j + (R H)_j / H_jj, rounded to a level, one column after the other. The cyclic descent over levels is that of QuantEase
(Behdin et al. 2023, arXiv 2309.01885), there with fixed scales.
"""

from dataclasses import dataclass, replace

import torch

from tierexport.quantize.codes import Codes
from tierexport.quantize.grids import Affine, Grid, divided

SWEEPS = 2
"""Rounds of coordinate descent; a third gained 1 % (docs/log.md)."""

LEAST_DETERMINANT = 1e-6
"""Relative determinant below which scale and offset can't be told apart, so that both stay."""


@dataclass(frozen=True)
class _Block:
    """One block of a matrix on the way: levels (rows, columns); scale and offset (rows, 1); `pull`, the block's columns of
    R H, (rows, columns); `hessian`, the block's (columns, columns) of H; the super-block's scales (2, rows, 1), or None.
    """

    levels: torch.Tensor
    affine: Affine
    pull: torch.Tensor
    hessian: torch.Tensor
    grid: Grid
    super_scales: torch.Tensor | None


def descended(weight: torch.Tensor, hessian: torch.Tensor, codes: Codes) -> Codes:
    """The codes of a float32 (rows, columns) matrix after SWEEPS rounds, each level as int8; `hessian`: H with damping."""
    grid, levels = codes.grid, codes.levels.clone()
    scales, offsets = codes.scales.clone(), codes.offsets.clone()
    pull = (weight - codes.values()) @ hessian
    for _ in range(SWEEPS):
        for number in range(scales.shape[1]):
            here, one = slice(number * grid.block, (number + 1) * grid.block), slice(number, number + 1)
            shared = None if codes.super_scales is None else codes.super_scales[:, :, number // grid.super_block, None]
            affine = Affine(scales[:, one], offsets[:, one])
            block = _Block(levels[:, here], affine, pull[:, here], hessian[here, here], grid, shared)
            old = affine.values(block.levels)
            levels[:, here], new, found = _improved(block, old)
            scales[:, one], offsets[:, one] = found.scale, found.offset
            pull -= (new - old) @ hessian[here]
    return Codes(grid, levels.to(torch.int8), scales, offsets, codes.super_scales)


def _improved(block: _Block, old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Affine]:
    """New levels and values (rows, columns) of a block, and its scale and offset; `old`: its values so far."""
    found = _rescaled(block)
    new = found.values(block.levels)
    levels, new = _relevelled(replace(block, affine=found, pull=block.pull - (new - old) @ block.hessian), new)
    return levels, new, found


def _rescaled(block: _Block) -> Affine:
    """The storable scale and offset (rows, 1) that are best for a block's levels, where better than those it has."""
    found = block.grid.storable(_best_fit(block), block.super_scales)
    change = block.levels * (found.scale - block.affine.scale) + (found.offset - block.affine.offset)
    better = _inner(change @ block.hessian, change) < 2 * _inner(change, block.pull)
    return Affine(found.scale.where(better, block.affine.scale), found.offset.where(better, block.affine.offset))


def _best_fit(block: _Block) -> Affine:
    """The scale and offset (rows, 1) that minimize the objective for a block's levels, whether they can be stored or not."""
    levels, pull, affine = block.levels, block.pull, block.affine
    through = levels @ block.hessian
    power = _inner(through, levels)
    if not block.grid.affine:
        return Affine(affine.scale + divided(_inner(levels, pull), power), affine.offset)
    across, ones = through.sum(1, keepdim=True), block.hessian.sum()
    by_level, by_one = _inner(levels, pull), pull.sum(1, keepdim=True)
    determinant = (power * ones - across.square()).clamp(min=0)
    determinant = determinant.where(determinant > LEAST_DETERMINANT * power * ones, 0.0)
    return Affine(
        affine.scale + divided(by_level * ones - across * by_one, determinant),
        affine.offset + divided(power * by_one - across * by_level, determinant),
    )


def _inner(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Dot product of each row with the same row, (rows, 1)."""
    return (one * other).sum(1, keepdim=True)


def _relevelled(block: _Block, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and values (rows, columns) of a block after each column took the level that is best for it, in order."""
    inverse = divided(torch.ones_like(block.affine.scale), block.affine.scale)[:, 0]
    scale, offset = block.affine.scale[:, 0], block.affine.offset[:, 0]
    values, pull = values.T.contiguous(), block.pull.T.contiguous()
    levels = torch.empty_like(values)
    for column in range(len(values)):
        wished = values[column] + pull[column] / block.hessian[column, column]
        levels[column] = block.grid.levels((wished - offset) * inverse)
        new = levels[column] * scale + offset
        pull -= block.hessian[column][:, None] * (new - values[column])
        values[column] = new
    return levels.T, values.T
