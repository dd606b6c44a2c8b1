"""Torchao's 4-bit tensors from weights and from codes, in both layouts."""

from typing import TYPE_CHECKING, Any

from tierexport.quantize.codes import Codes
from tierexport.quantize.grids import divided

if TYPE_CHECKING:
    import torch


def pack_int4(weight: "torch.Tensor", group_size: int) -> Any:
    """Round a matrix to nearest, two 4-bit codes per byte, as torchao's plain `Int4Tensor`.

    `weight` is (rows, columns). Codes are -8 to 7, the even column in the low half of a byte;
    scale and zero point are bfloat16 (columns / group_size, rows), and a weight is
    code · scale + zero point: the convention of the mslk kernel that multiplies with it. The codes
    are chosen for the bfloat16 scales, not for the exact ones.
    """
    import torch
    from torchao.quantization import Int4Tensor

    rows, columns = weight.shape
    grouped = weight.float().reshape(rows, columns // group_size, group_size)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-6).bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    codes = ((grouped - zero.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round().clamp(-8, 7)
    codes = codes.to(torch.int8).reshape(rows, columns)
    return Int4Tensor(_paired(codes), scale.t().contiguous(), zero.t().contiguous(), [1, group_size], weight.shape)


def _paired(codes: "torch.Tensor") -> "torch.Tensor":
    """Int8 codes two to a byte, the even column in the low half."""
    return ((codes[:, ::2] & 0xF) | (codes[:, 1::2] << 4)).contiguous()


def store(weight: Any, codes: Codes) -> None:
    """Put codes in the place of those that torchao has chosen; `weight` is one of its 4-bit tensors."""
    import torch
    from torchao.quantization import Int4Tensor

    levels = codes.levels.to(torch.int8)
    if isinstance(weight.data, Int4Tensor):
        weight.qdata.copy_(_paired(levels))
        weight.scale.copy_(codes.scales.T)
        weight.zero_point.copy_(codes.offsets.T)
    else:
        weight.qdata.copy_(levels)
        weight.scale.copy_(codes.scales)
        weight.zero_point.copy_(divided(-codes.offsets, codes.scales).round())
