"""Torchao's 4-bit tensors from codes and back to values, in both layouts."""

from typing import Any

import torch


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
