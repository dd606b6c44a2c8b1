"""Rounding with second-order error feedback: what one column loses, the columns after it make good.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) over blocks that share a scale, each scale chosen by the loss
that the feedback itself would leave; then rounds of coordinate descent on the same objective, in
which scales and levels take turns. The objective is the squared change of the layer's output over the
calibration texts: the trace of (W - Q) H (W - Q)ᵀ, H being the mean of x xᵀ over its inputs x.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tierexport.quantize.grids import Grid, divided

if TYPE_CHECKING:
    import torch

DAMPING = 0.04
"""Share of the mean diagonal that is added to the diagonal of H, so that no direction is free."""

MORE_DAMPING = 10.0
TRIES = 4
"""Where H is still not positive definite, damping grows tenfold, at most so many times in all."""

TRIED_SCALES = 4
"""Candidates, the best without feedback, whose loss with feedback is compared."""

SWEEPS = 2
"""Rounds of coordinate descent; a third gained 1 % (docs/log.md)."""


@dataclass(frozen=True)
class Codes:
    """A rounded matrix: levels (rows, columns), int8 once they are final; float32 scales and offsets (rows, blocks);
    and the steps that those are multiples of, float32 (2, rows, frames), or None.
    """

    grid: Grid
    levels: "torch.Tensor"
    scales: "torch.Tensor"
    offsets: "torch.Tensor"
    frames: "torch.Tensor | None"

    def values(self) -> "torch.Tensor":
        """The float32 (rows, columns) matrix that a reader of the format will see."""
        rows, columns = self.levels.shape
        blocks = self.levels.float().reshape(rows, -1, self.grid.block)
        return (blocks * self.scales[..., None] + self.offsets[..., None]).reshape(rows, columns)


def objective(weight: "torch.Tensor", rounded: "torch.Tensor", hessian: "torch.Tensor") -> float:
    """The mean squared change of the layer's output, summed over its rows."""
    change = weight - rounded
    return float(((change @ hessian) * change).sum(dtype=change.double().dtype))


@dataclass(frozen=True)
class Curvature:
    """H with damping, and the upper Cholesky factor of its inverse: float32 (columns, columns)."""

    hessian: "torch.Tensor"
    feedback: "torch.Tensor"


def gptq(weight: "torch.Tensor", curvature: Curvature, grid: Grid) -> Codes:
    """Round a float32 (rows, columns) matrix onto a grid."""
    return _descended(weight, curvature.hessian, _fed_back(weight, curvature.feedback, grid))


def curvature_of(hessian: "torch.Tensor") -> Curvature | None:
    """What error feedback needs of H, the mean of x xᵀ over a matrix's inputs.

    None when no damping makes it positive definite, or it holds values that are not finite.
    """
    import torch

    exact = hessian.double()
    mean = exact.diagonal().mean()
    if not torch.isfinite(exact).all():
        return None
    share = DAMPING
    for _ in range(TRIES):
        whole = exact + torch.eye(len(exact), dtype=torch.float64) * (share * mean if mean > 0 else 1.0)
        lower, failed = torch.linalg.cholesky_ex(whole)
        if not failed:
            feedback, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return Curvature(whole.float(), feedback.float())
        share *= MORE_DAMPING
    return None


# --- error feedback


def _fed_back(weight: "torch.Tensor", feedback: "torch.Tensor", grid: Grid) -> Codes:
    """Column after column, block after block; `feedback` is the upper Cholesky factor of H's inverse."""
    import torch

    rows, columns = weight.shape
    left = weight.clone()
    levels = torch.empty_like(left)
    scales = torch.zeros(rows, columns // grid.block)
    offsets = torch.zeros_like(scales)
    frames = []
    for number, start in enumerate(range(0, columns, grid.block)):
        here = slice(start, start + grid.block)
        if number % grid.blocks == 0:
            wide = slice(start, start + grid.block * grid.blocks)
            frame = _frame(left[:, wide], 1 / feedback.diagonal()[wide].square(), grid)
            frames += [] if frame is None else [frame]
        block = feedback[here, here]
        scale, offset = _candidates(left[:, here], 1 / block.diagonal().square(), grid, frame)
        trial, error = _trial(left[:, here], scale, offset, grid, block)
        best = error.square().sum(0).argmin(0)
        every = torch.arange(rows)
        levels[:, here] = trial[:, best, every].T
        scales[:, number], offsets[:, number] = scale[best, every, 0], offset[best, every, 0]
        left[:, here.stop :] -= error[:, best, every].T @ feedback[here, here.stop :]
    return Codes(grid, levels, scales, offsets, torch.cat(frames, 2) if frames else None)


def _frame(wide: "torch.Tensor", weights: "torch.Tensor", grid: Grid) -> "torch.Tensor | None":
    """The steps for the blocks that share a frame: those that the best scales of each block ask for."""
    import torch

    if grid.blocks == 1:
        return None
    wished = []
    for start in range(0, wide.shape[1], grid.block):
        here = slice(start, start + grid.block)
        scale, offset = _fitted(wide[:, here], weights[here], grid)
        loss = _loss(wide[:, here], scale, offset, weights[here], grid)
        best, every = loss.argmin(0), torch.arange(len(wide))
        wished.append(torch.stack([scale[best, every], offset[best, every]]))
    scales, offsets = torch.cat(wished, 2)
    return grid.frame(scales, offsets)


def _candidates(
    block: "torch.Tensor", weights: "torch.Tensor", grid: Grid, frame: "torch.Tensor | None"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The storable scales and offsets (candidates, rows, 1) that are best without feedback, for each row."""
    scale, offset = grid.settle(*_fitted(block, weights, grid), frame)
    loss = _loss(block, scale, offset, weights, grid)
    chosen = loss.topk(min(TRIED_SCALES, len(loss)), 0, largest=False).indices[..., None]
    return scale.gather(0, chosen), offset.gather(0, chosen)


def _fitted(block: "torch.Tensor", weights: "torch.Tensor", grid: Grid) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scales and offsets to try, each made the best for the levels that it leads to (weighted least squares)."""
    scale, offset = _ranges(block, grid) if grid.affine else _extremes(block, grid)
    levels = grid.levels(divided(block - offset, scale))
    origin = divided(
        (weights * levels * block).sum(-1, keepdim=True), (weights * levels.square()).sum(-1, keepdim=True)
    )  # the slope where there is no offset
    if not grid.affine:
        return origin, offset
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
    slope, offset = slope.where(~flat, scale), fitted.where(~flat, offset)
    lifted = (offset > 0) & (grid.blocks > 1)
    return origin.where(lifted, slope), offset.where(~lifted, 0.0)


def _extremes(block: "torch.Tensor", grid: Grid) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scales that put the largest weight on the lowest level or on its mirror image, or beyond it; no offsets."""
    import torch

    largest = block.gather(1, block.abs().argmax(1, keepdim=True)) / grid.low
    fine = grid.high >= 100 and not grid.table
    factors = torch.linspace(0.98, 1.0, 3) if fine else torch.linspace(0.7 if grid.high < 16 or grid.table else 0.85, 1.1, 9)
    scales = torch.cat([factors, -factors])[:, None, None] * largest
    return scales, torch.zeros_like(scales)


def _ranges(block: "torch.Tensor", grid: Grid) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scales and offsets that spread the levels over the block's range, or over less of it on either side."""
    import torch

    low, high = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
    middle = (low + high) / 2
    shares = torch.tensor([1.0, 0.94, 0.88, 0.8, 0.72])
    below, above = (each.reshape(-1, 1, 1) for each in torch.meshgrid(shares, shares, indexing="ij"))
    bottom, top = middle + (low - middle) * below, middle + (high - middle) * above
    if grid.blocks > 1 or grid.integer_offset:
        bottom = bottom.clamp(max=0)  # the offsets of a frame are never positive; a zero point is one of the levels
    if grid.integer_offset:
        top = top.clamp(min=0)
    scale = (top - bottom) / (grid.high - grid.low)
    return scale, bottom - grid.low * scale


def _loss(
    block: "torch.Tensor", scale: "torch.Tensor", offset: "torch.Tensor", weights: "torch.Tensor", grid: Grid
) -> "torch.Tensor":
    """Weighted squared error (candidates, rows) without feedback."""
    found = grid.levels(divided(block - offset, scale)) * scale + offset
    return (weights * (block - found).square()).sum(-1)


def _trial(
    block: "torch.Tensor", scale: "torch.Tensor", offset: "torch.Tensor", grid: Grid, feedback: "torch.Tensor"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Levels and scaled errors (columns, candidates, rows) of a block with feedback inside it."""
    import torch

    scale, offset = scale[..., 0], offset[..., 0]
    inverse = divided(torch.ones_like(scale), scale)
    levels = torch.empty(block.shape[1], *scale.shape)
    errors = torch.empty_like(levels)
    for column in range(block.shape[1]):
        value = block[:, column].expand_as(scale)
        if column:
            fed = feedback[:column, column] @ errors[:column].reshape(column, -1)
            value = value - fed.reshape(scale.shape)
        levels[column] = grid.levels((value - offset) * inverse)
        errors[column] = (value - levels[column] * scale - offset) / feedback[column, column]
    return levels, errors


# --- coordinate descent


def _descended(weight: "torch.Tensor", hessian: "torch.Tensor", codes: Codes) -> Codes:
    """The same with each block's scale refitted and each level chosen anew, the others as they are, in turns."""
    import torch

    grid, levels = codes.grid, codes.levels.clone()
    scales, offsets = codes.scales.clone(), codes.offsets.clone()
    pull = (weight - codes.values()) @ hessian  # half the objective's gradient, with its sign turned
    for _ in range(SWEEPS):
        for number in range(scales.shape[1]):
            here, one = slice(number * grid.block, (number + 1) * grid.block), slice(number, number + 1)
            frame = None if codes.frames is None else codes.frames[:, :, number // grid.blocks, None]
            block = hessian[here, here]
            old = levels[:, here] * scales[:, one] + offsets[:, one]
            found = _rescaled(levels[:, here], scales[:, one], offsets[:, one], pull[:, here], block, grid, frame)
            scales[:, one], offsets[:, one] = found
            new = levels[:, here] * found[0] + found[1]
            levels[:, here], new = _relevelled(new, pull[:, here] - (new - old) @ block, block, *found, grid)
            pull -= (new - old) @ hessian[here]
    return Codes(grid, levels.to(torch.int8), scales, offsets, codes.frames)


def _rescaled(
    levels: "torch.Tensor", scale: "torch.Tensor", offset: "torch.Tensor", pull: "torch.Tensor", block: "torch.Tensor",
    grid: Grid, frame: "torch.Tensor | None",
) -> "tuple[torch.Tensor, torch.Tensor]":  # fmt: skip
    """The storable scale and offset (rows, 1) that are best for a block's levels, where better than those it has."""

    def inner(one: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
        return (one * other).sum(1, keepdim=True)

    through = levels @ block
    power = inner(through, levels)
    if grid.affine:
        across, ones = through.sum(1, keepdim=True), block.sum()
        by_level, by_one = inner(levels, pull), pull.sum(1, keepdim=True)
        determinant = (power * ones - across.square()).clamp(min=0)
        determinant = determinant.where(determinant > 1e-6 * power * ones, 0.0)
        wished = (
            scale + divided(by_level * ones - across * by_one, determinant),
            offset + divided(power * by_one - across * by_level, determinant),
        )
    else:
        wished = (scale + divided(inner(levels, pull), power), offset)
    found = grid.settle(*wished, frame)
    change = levels * (found[0] - scale) + (found[1] - offset)
    better = inner(change @ block, change) < 2 * inner(change, pull)
    return found[0].where(better, scale), found[1].where(better, offset)


def _relevelled(
    values: "torch.Tensor", pull: "torch.Tensor", block: "torch.Tensor", scale: "torch.Tensor", offset: "torch.Tensor",
    grid: Grid,
) -> "tuple[torch.Tensor, torch.Tensor]":  # fmt: skip
    """Levels and values (rows, columns) of a block after each column took what is best for it, one after the other."""
    import torch

    inverse = divided(torch.ones_like(scale), scale)[:, 0]
    scale, offset = scale[:, 0], offset[:, 0]
    values, pull = values.T.contiguous(), pull.T.contiguous()
    levels = torch.empty_like(values)
    for column in range(len(values)):
        wished = values[column] + pull[column] / block[column, column]
        levels[column] = grid.levels((wished - offset) * inverse)
        new = levels[column] * scale + offset
        pull -= block[column][:, None] * (new - values[column])
        values[column] = new
    return levels.T, values.T
