"""Torchao's 4-bit tensors from codes and back to values, in both layouts."""

from typing import Any

import torch

from tierexport.quantize.codes import Codes
from tierexport.quantize.grids import divided


def pack_int4(weight: torch.Tensor, group_size: int) -> Any:
    """Round a matrix to nearest, two 4-bit codes per byte, as torchao's plain `Int4Tensor`.

    `weight` is (rows, columns). Codes are -8 to 7, the even column in the low half of a byte;
    scale and zero point are bfloat16 (columns / group_size, rows), and a weight is
    code · scale + zero point: the convention of the mslk kernel that multiplies with it. The codes
    are chosen for the bfloat16 scales, not for the exact ones.
    """
    from torchao.quantization import Int4Tensor

    rows, columns = weight.shape
    grouped = weight.float().reshape(rows, columns // group_size, group_size)
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-6).bfloat16()
    zero = (low + 8 * scale.float()).bfloat16()
    codes = ((grouped - zero.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)).round().clamp(-8, 7)
    codes = codes.to(torch.int8).reshape(rows, columns)
    return Int4Tensor(_paired(codes), scale.t().contiguous(), zero.t().contiguous(), [1, group_size], weight.shape)


def _paired(codes: torch.Tensor) -> torch.Tensor:
    """Int8 codes two to a byte, the even column in the low half."""
    return ((codes[:, ::2] & 0xF) | (codes[:, 1::2] << 4)).contiguous()


def store(weight: Any, codes: Codes) -> None:
    """Put codes in the place of those that torchao has chosen; `weight` is one of its 4-bit tensors."""
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


def unpack_int4(packed: Any) -> torch.Tensor:
    """The float32 (rows, columns) matrix of an `Int4Tensor`; the inverse of `pack_int4`."""
    rows, columns = packed.shape
    codes = torch.stack([packed.qdata << 4 >> 4, packed.qdata >> 4], -1).reshape(rows, columns)
    grouped = codes.float().reshape(rows, -1, packed.block_size[-1])
    scale, zero = (each.float().t().unsqueeze(-1) for each in (packed.scale, packed.zero_point))
    weight: torch.Tensor = (grouped * scale + zero).reshape(rows, columns)
    return weight


def plain(weight: Any) -> torch.Tensor:
    """The float32 values of a weight that may be quantized."""
    from torchao.quantization import Int4Tensor
    from torchao.utils import TorchAOBaseTensor

    if isinstance(weight.data, Int4Tensor):
        return unpack_int4(weight)
    found: torch.Tensor = weight.dequantize() if isinstance(weight.data, TorchAOBaseTensor) else weight
    return found.float()
