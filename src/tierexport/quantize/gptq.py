"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): rounding with second-order error feedback, over blocks that share a scale.

The objective is the mean squared change of the layer's output over the calibration texts, tr((W - Q) H (W - Q)ᵀ), H being
the mean of x xᵀ over its inputs x. With U the upper Cholesky factor of H⁻¹ = UᵀU, columns are rounded from first to last,
and each one's rounding error is propagated to the columns that are left:

    e = (w_j - q_j) / U_jj        W[:, j+1:] -= e · U[j, j+1:]

Of a block's candidate scales (scales.py), each row takes the one whose loss is least with this error feedback inside the
block, Σ e². Coordinate descent on the same objective follows (descent.py).
"""

from dataclasses import dataclass

import torch

from tierexport.quantize.codes import Codes
from tierexport.quantize.descent import descended
from tierexport.quantize.grids import Affine, Grid, divided
from tierexport.quantize.scales import candidates, shared_scales

DAMPING = 0.04
"""Share of the mean diagonal that is added to the diagonal of H, so that no direction is free."""

MORE_DAMPING = 10.0
TRIES = 4
"""Where H is still not positive definite, damping grows tenfold, at most so many times in all."""


@dataclass(frozen=True)
class Curvature:
    """H with damping, and U, the upper Cholesky factor of its inverse: float32 (columns, columns)."""

    hessian: torch.Tensor
    feedback: torch.Tensor


def objective(weight: torch.Tensor, rounded: torch.Tensor, hessian: torch.Tensor) -> float:
    """The mean squared change of the layer's output, summed over its rows: tr((W - Q) H (W - Q)ᵀ).

    `weight` and `rounded`: float32 (rows, columns); `hessian`: float32 (columns, columns).
    """
    change = weight - rounded
    return float(((change @ hessian) * change).sum(dtype=change.double().dtype))


@dataclass(frozen=True)
class Request:
    """A matrix to round, float32 (rows, columns), what its inputs are like, and the grid, whose blocks divide the columns."""

    weight: torch.Tensor
    curvature: Curvature
    grid: Grid


def gptq(request: Request) -> Codes:
    """The codes of a matrix by error feedback, then coordinate descent, on any device; on a CPU compiled code is faster."""
    codes = _fed_back(request.weight, request.curvature.feedback, request.grid)
    return descended(request.weight, request.curvature.hessian, codes)


def curvature_of(hessian: torch.Tensor) -> Curvature | None:
    """What error feedback needs of H, float32 (columns, columns), the mean of x xᵀ over a matrix's inputs.

    None when no damping makes it positive definite, or it holds values that are not finite.
    """
    mean = float(hessian.diagonal().double().mean())
    if not torch.isfinite(hessian).all():
        return None
    for tried in range(TRIES):
        damping = DAMPING * MORE_DAMPING**tried * mean if mean > 0 else 1.0
        if (feedback := _inverse_factor(hessian, damping)) is not None:
            damped = hessian.clone()
            damped.diagonal().add_(damping)
            return Curvature(damped, feedback)
    return None


def _inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor | None:
    """U of (H + damping · I)⁻¹ = UᵀU, float32 (columns, columns), None where that is not positive definite.

    With rows and columns in reverse order, H is L Lᵀ; reversed again, L is R with H = R Rᵀ, and U is its inverse. Computed in
    float64, in place: of a wide FFN each such matrix takes a tenth of a gigabyte.
    """
    damped = hessian.flip(0, 1).double()
    damped.diagonal().add_(damping)
    if (lower := cholesky(damped)) is None:
        return None
    unit = torch.eye(len(damped), dtype=damped.dtype, device=damped.device).T
    torch.linalg.solve_triangular(lower, unit, upper=False, out=unit)
    feedback = unit.float().flip(0, 1)
    return feedback if torch.isfinite(feedback).all() else None


def cholesky(matrix: torch.Tensor) -> torch.Tensor | None:
    """The lower Cholesky factor of a symmetric matrix, in its place; None where it is not positive definite."""
    lower = matrix.T  # LAPACK's order, in which nothing is copied
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    return None if failed else lower


@dataclass(frozen=True)
class _Block:
    """A rounded block: levels (rows, columns), scale and offset (rows,), and the errors e, (rows, columns)."""

    levels: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    errors: torch.Tensor


def _fed_back(weight: torch.Tensor, feedback: torch.Tensor, grid: Grid) -> Codes:
    """Block after block, each block's errors propagated to all columns after it; `feedback` is U."""
    left = weight.clone()
    blocks: list[_Block] = []
    shared: list[torch.Tensor | None] = []
    wide = grid.block * grid.super_block
    for start in range(0, weight.shape[1], grid.block):
        here = slice(start, start + grid.block)
        if start % wide == 0:
            every = slice(start, start + wide)
            shared.append(shared_scales(left[:, every], 1 / feedback.diagonal()[every].square(), grid))
        blocks.append(_rounded(left[:, here], feedback[here, here], grid, shared[-1]))
        left[:, here.stop :] -= blocks[-1].errors @ feedback[here, here.stop :]
    return _joined(blocks, [each for each in shared if each is not None], grid)


def _joined(blocks: list[_Block], shared: list[torch.Tensor], grid: Grid) -> Codes:
    """The codes of a matrix from those of its blocks and the scales of its super-blocks."""
    levels = torch.cat([each.levels for each in blocks], 1).contiguous()
    scales, offsets = torch.stack([each.scale for each in blocks], 1), torch.stack([each.offset for each in blocks], 1)
    return Codes(grid, levels, scales, offsets, torch.cat(shared, 2) if shared else None)


def _rounded(block: torch.Tensor, feedback: torch.Tensor, grid: Grid, shared: torch.Tensor | None) -> _Block:
    """A block rounded by the candidate of least Σ e² in each row; `feedback`: U's own (columns, columns) of the block."""
    tried = candidates(block, 1 / feedback.diagonal().square(), grid, shared)
    levels, errors = _trial(block, tried, grid, feedback)
    best, every = errors.square().sum(0).argmin(0), torch.arange(len(block), device=block.device)
    scale, offset = tried.scale[best, every, 0], tried.offset[best, every, 0]
    return _Block(levels[:, best, every].T, scale, offset, errors[:, best, every].T)


def _trial(block: torch.Tensor, tried: Affine, grid: Grid, feedback: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and errors e, float32 (columns, candidates, rows), of a block with error feedback inside it."""
    scale, offset = tried.scale[..., 0], tried.offset[..., 0]
    inverse = divided(torch.ones_like(scale), scale)
    levels = block.new_empty(block.shape[1], *scale.shape)
    errors = torch.empty_like(levels)
    for column in range(block.shape[1]):
        value = block[:, column].expand_as(scale)
        if column:
            fed = feedback[:column, column] @ errors[:column].reshape(column, -1)
            value = value - fed.reshape(scale.shape)
        levels[column] = grid.levels((value - offset) * inverse)
        errors[column] = (value - levels[column] * scale - offset) / feedback[column, column]
    return levels, errors
