"""The grids that weights are rounded onto: which values a block of columns can take.

A block's weights are `scale · level + offset`; all blocks of a row have the grid's levels. What differs
from type to type is which scales and offsets can be stored. Layouts: ggml-common.h and the
`dequantize_row_*` functions of ggml-quants.c; torchao's `IntxUnpackedToInt8Tensor` and `Int4Tensor`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Affine:
    """How levels become values: `scale · level + offset`, two float32 tensors of one shape."""

    scale: "torch.Tensor"
    offset: "torch.Tensor"

    def values(self, levels: "torch.Tensor") -> "torch.Tensor":
        """The values of levels, float32, of any shape that scale and offset broadcast to."""
        return levels * self.scale + self.offset


@dataclass(frozen=True)
class Grid:
    """Blocks of `block` columns with levels `low` to `high`, or those of a table.

    `affine`: blocks have an offset. `super_block`: how many blocks form a super-block with a shared scale (and, where they
    are affine, a shared scale of offsets), of which each block's own scale and offset are multiples by integers up to
    `largest_multiple`; 1 where each block stores its own, in `precision`.
    `integer_offset`: the offset is a whole number of scales, from -`high` to -`low` of them.
    """

    name: str
    low: int
    high: int
    block: int = 32
    affine: bool = False
    super_block: int = 1
    largest_multiple: int = 0
    table: tuple[int, ...] = ()
    precision: str = "float16"
    integer_offset: bool = False

    def levels(self, values: "torch.Tensor") -> "torch.Tensor":
        """The level nearest to each value, as float32, of the same shape."""
        if not self.table:
            return values.round().clamp_(self.low, self.high)
        halves = (2 * values).floor_().clamp_(2 * self.low, 2 * self.high)
        return lookup_of(self.table).to(values.device)[halves.long() - 2 * self.low]

    def super_scales(self, blocks: Affine) -> "torch.Tensor | None":
        """The scales of a super-block, float32 (2, rows, 1), for the wished scales and offsets (rows, blocks) of its blocks:
        one of scales, one of offsets. None where each block stores its own.
        """
        import torch

        if self.super_block == 1:
            return None
        scales, offsets = blocks.scale.abs(), -blocks.offset
        largest = torch.stack([scales.amax(1, keepdim=True), offsets.amax(1, keepdim=True).clamp(min=0)])
        return _as_stored(largest / self.largest_multiple, self.precision)

    def storable(self, wished: Affine, super_scales: "torch.Tensor | None") -> Affine:
        """The nearest scales and offsets that can be stored, for any shape that the super-block's scales broadcast to."""
        scale, offset = wished.scale, wished.offset
        if super_scales is not None:
            lowest = 0 if self.affine else -self.largest_multiple
            scales = divided(scale, super_scales[0]).round().clamp(lowest, self.largest_multiple)
            offsets = divided(-offset, super_scales[1]).round().clamp(0, self.largest_multiple)
            return Affine(super_scales[0] * scales, -(super_scales[1] * offsets))
        scale = _as_stored(scale, self.precision)
        if self.integer_offset:
            return Affine(scale, scale * divided(offset, scale).round().clamp(-self.high, -self.low))
        return Affine(scale, _as_stored(offset, self.precision))


@functools.cache
def lookup_of(table: tuple[int, ...]) -> "torch.Tensor":
    """The level nearest to each half step from the lowest level to the highest, float32 (2 · (highest - lowest) + 1,).

    Levels are whole, so they meet at multiples of 1/2, and what lies between two of those has one nearest.
    """
    import torch

    halves = torch.arange(2 * table[0], 2 * table[-1] + 1) / 2 + 0.25
    levels = torch.tensor(table, dtype=torch.float32)
    return levels[(halves[:, None] - levels).abs().argmin(1)]


def divided(values: "torch.Tensor", by: "torch.Tensor") -> "torch.Tensor":
    """`values / by`, and 0 where `by` is 0."""
    import torch

    return torch.where(by == 0, 0.0, values / torch.where(by == 0, 1.0, by))


def _as_stored(values: "torch.Tensor", precision: str) -> "torch.Tensor":
    """Values as `precision` stores them, float32; beyond its range they would not be finite, so they end there."""
    import torch

    kind = getattr(torch, precision)
    most = torch.finfo(kind).max
    return values.clamp(-most, most).to(kind).float()


GGUF_GRIDS: Mapping[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("Q4_0", -8, 7),
        Grid("Q5_0", -16, 15),
        Grid("Q8_0", -127, 127),
        Grid("Q4_1", 0, 15, affine=True),
        Grid("Q5_1", 0, 31, affine=True),
        Grid("IQ4_NL", -127, 113, table=IQ4_NL_LEVELS),
        Grid("Q4_K", 0, 15, affine=True, super_block=8, largest_multiple=63),
        Grid("Q5_K", 0, 31, affine=True, super_block=8, largest_multiple=63),
        Grid("Q6_K", -32, 31, block=16, super_block=16, largest_multiple=127),
    )
}
"""The native types of GGUF that error feedback is implemented for."""


def int4_grid(group_size: int, layout: str) -> Grid:
    """Torchao's 4-bit groups: portable ones have float32 scales and integer zero points, packed ones bfloat16 pairs."""
    if layout == "packed":
        return Grid("int4", -8, 7, block=group_size, affine=True, precision="bfloat16")
    return Grid("int4", -8, 7, block=group_size, affine=True, precision="float32", integer_offset=True)
