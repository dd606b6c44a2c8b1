"""What rounding needs of a Linear's inputs: their second moments, what they have lost against fp32's, and their means."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch

from tierexport.quantize.gptq import Curvature, cholesky, curvature_of
from tierexport.quantize.passes import Pass, Passes, Step

CORRECTION = 0.5
"""Share of the way from a matrix's own output to fp32's; all of it fits the calibration texts too well."""

CORRECTION_DAMPING = 0.05
"""λ, as a share of the mean diagonal of H."""

TILE = 128
"""Rows of a symmetric product that are computed at a time, each up to the diagonal."""


@dataclass(frozen=True)
class Problem:
    """What error feedback asks of a weight: H, float32 (columns, columns), what it needs of it (None where it is degenerate),
    and CORRECTION · D (H + λI)⁻¹, float32 (columns, columns), which a weight is multiplied with.
    """

    hessian: torch.Tensor
    curvature: Curvature | None
    correction: torch.Tensor


@dataclass(frozen=True)
class Inputs:
    """Means over tokens of x and of e, float32 (columns,), and about them of x xᵀ and of (e - x) xᵀ, float32 (columns,
    columns), empty where they were not asked for.
    """

    second: torch.Tensor
    lost: torch.Tensor
    mean: torch.Tensor
    fp32_mean: torch.Tensor

    @cached_property
    def plain(self) -> Problem:
        """About zero: for a Linear whose bias can't change."""
        return _problem(
            torch.addr(self.second, self.mean, self.mean),
            torch.addr(self.lost, self.fp32_mean - self.mean, self.mean),
        )

    @cached_property
    def centred(self) -> Problem:
        """About the means: for a Linear whose bias makes up for what the means lose."""
        return _problem(self.second, self.lost.clone())

    def bias_change(self, weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        """W · mean(e) - Ŵ · mean(x), (rows,), of fp32 and rounded weights, float32 (rows, columns)."""
        return (weight - rounded) @ self.mean + weight @ (self.fp32_mean - self.mean)


class _Sums:
    """Sums over the tokens of one lane."""

    def __init__(self, moments: bool) -> None:
        self._moments = moments
        self.tokens = 0
        self.parts: list[torch.Tensor] = []

    def add(self, inputs: torch.Tensor, exact: torch.Tensor | None = None) -> None:
        """Take in a batch's x and e, float32 (tokens, columns) each; where they are the same, e's sums stay zeros."""
        if not self.parts:
            columns = inputs.shape[1]
            shapes = [(columns,), (columns,), *([(columns, columns)] * 2 if self._moments else [])]
            self.parts = [inputs.new_zeros(shape) for shape in shapes]
        self.tokens += len(inputs)
        self.parts[0] += inputs.sum(0)
        if self._moments:
            for start in range(0, inputs.shape[1], TILE):
                rows, before = slice(start, start + TILE), slice(0, start + TILE)
                self.parts[2][rows, before].addmm_(inputs[:, rows].T, inputs[:, before])
        if exact is None:
            return
        self.parts[1] += exact.sum(0)
        if self._moments:
            self.parts[3].addmm_((exact - inputs).T, inputs)


def gathered(passes: Passes, step: Step, moments: bool) -> Inputs | None:
    """Take all passes to a step and sum up what its Linears get; None where they get nothing.

    `moments`: whether the second moments are wanted, too.
    """
    after = passes.first_beyond(step)

    def lane(pairs: Sequence[tuple[Pass, Pass]]) -> _Sums:
        sums = _Sums(moments)
        for exact, rounded in pairs:
            expected, found = exact.advance(step), rounded.advance(step)
            if expected is not None and found is not None and expected.shape == found.shape:
                sums.add(found, expected)
            del expected
            if after:
                exact.advance(after)  # its wide activations go; the rounded one has to wait
        return sums

    lanes = [sums for sums in passes.each_lane(lane) if sums.tokens]
    if not lanes:
        return None
    tokens = sum(each.tokens for each in lanes)
    mean, fp32_mean, *rest = [_total([each.parts.pop(0) for each in lanes]).div_(tokens) for _ in range(4 if moments else 2)]
    if not moments:
        return Inputs(mean.new_empty(0, 0), mean.new_empty(0, 0), mean, fp32_mean)
    second, lost = rest
    second.tril_().add_(torch.tril(second, -1).T)
    return Inputs(second.addr_(mean, mean, alpha=-1), lost.addr_(fp32_mean - mean, mean, alpha=-1), mean, fp32_mean)


def gathered_fp32(passes: Passes, step: Step) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean of e eᵀ about the mean of e, and that mean, of what a step's Linears get in fp32, float32 (columns, columns) and
    (columns,); None where they get nothing.
    """
    after = passes.first_beyond(step)

    def lane(pairs: Sequence[tuple[Pass, Pass]]) -> _Sums:
        sums = _Sums(True)
        for exact, _ in pairs:
            if (found := exact.advance(step)) is not None:
                sums.add(found)
            if after:
                exact.advance(after)
        return sums

    lanes = [sums for sums in passes.each_lane(lane) if sums.tokens]
    if not lanes:
        return None
    tokens = sum(each.tokens for each in lanes)
    mean, second = [_total([each.parts[part] for each in lanes]).div_(tokens) for part in (0, 2)]
    second.tril_().add_(torch.tril(second, -1).T)
    return second.addr_(mean, mean, alpha=-1), mean


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, in the first's place."""
    for each in parts[1:]:
        parts[0].add_(each)
    return parts[0]


def _problem(hessian: torch.Tensor, lost: torch.Tensor) -> Problem:
    """The problem of these moments; `lost` is used up."""
    with ThreadPoolExecutor(1) as other:
        curvature = other.submit(curvature_of, hessian)
        return Problem(hessian, correction=correction(hessian, lost), curvature=curvature.result())


def correction(hessian: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    """CORRECTION · D (H + λI)⁻¹, float32 (columns, columns), in the place of `lost`, D; zeros where it can't be computed."""
    damped = hessian.clone()
    damped.diagonal().add_(CORRECTION_DAMPING * hessian.diagonal().mean())
    if (lower := cholesky(damped)) is None:
        return lost.zero_()
    found = lost.T  # LAPACK's order, in which nothing is copied
    torch.linalg.solve_triangular(lower, found, upper=False, out=found)
    torch.linalg.solve_triangular(lower.T, found, upper=True, out=found)
    return lost.mul_(CORRECTION) if torch.isfinite(lost).all() else lost.zero_()
