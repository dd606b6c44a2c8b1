"""Writes codes as the bytes of their GGUF type, exactly: what was chosen is stored, nothing is rounded again.

Block layouts: ggml-common.h (`block_q4_0` and so on); gguf's `quants.py` reads them back.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from tierexport.quantize.codes import Codes

Bytes = npt.NDArray[np.uint8]

NIBBLE, FOUR, SIX = np.uint8(15), np.uint8(4), np.uint8(6)


def pack(codes: Codes) -> Bytes:
    """The uint8 (rows, bytes per row) of a matrix. Raises KeyError for a grid that is no GGUF type."""
    rows = len(codes.levels)
    return np.hstack(_PACKERS[codes.grid.name](codes)).reshape(rows, -1)


def _blocks(codes: Codes, lowest: int = 0) -> Bytes:
    """Levels from 0 on, a row per block, or per super-block where blocks share a scale."""
    levels = codes.levels.numpy().astype(np.int16) - lowest
    return levels.astype(np.uint8).reshape(-1, codes.grid.block * codes.grid.super_block)


def _halves(values: "npt.NDArray[np.float32]") -> Bytes:
    """One float16 per block, as two bytes."""
    return np.ascontiguousarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def _fields(values: Bytes, bits: int, width: int) -> Bytes:
    """Bytes that each hold 8 / `bits` values that lie `width` apart, the first in the lowest bits."""
    parts = values.reshape(len(values), -1, 8 // bits, width)
    shifted = parts << (bits * np.arange(8 // bits, dtype=np.uint8))[:, None]
    packed: Bytes = np.bitwise_or.reduce(shifted, axis=2)
    return packed.reshape(len(values), -1)


def _legacy(lowest: int, fifth_bit: bool) -> Callable[[Codes], list[Bytes]]:
    """Q4_0, Q4_1, Q5_0, Q5_1: scale, offset, the fifth bits, the other four."""

    def parts(codes: Codes) -> list[Bytes]:
        levels = _blocks(codes, lowest)
        head = [_halves(codes.scales.numpy())] + ([_halves(codes.offsets.numpy())] if codes.grid.affine else [])
        fifth = [np.packbits(levels >> FOUR, axis=1, bitorder="little")] if fifth_bit else []
        return [*head, *fifth, _fields(levels & NIBBLE, 4, 16)]

    return parts


def _q8_0(codes: Codes) -> list[Bytes]:
    return [_halves(codes.scales.numpy()), _blocks(codes)]  # a negative level wraps to its two's complement


def _iq4_nl(codes: Codes) -> list[Bytes]:
    positions = np.searchsorted(np.array(codes.grid.table), codes.levels.numpy()).astype(np.uint8)
    return [_halves(codes.scales.numpy()), _fields(positions.reshape(-1, codes.grid.block), 4, 16)]


def _k4_or_k5(codes: Codes) -> list[Bytes]:
    """Q4_K, Q5_K: two float16 super-block scales, eight 6-bit scales and offsets, fifth bits, the other four."""
    levels = _blocks(codes)
    scales, offsets = _multiples(codes, codes.scales.numpy(), 0), _multiples(codes, -codes.offsets.numpy(), 1)
    first, last = (slice(0, 4), slice(4, 8))
    packed = [
        scales[:, first] | (scales[:, last] >> FOUR << SIX),
        offsets[:, first] | (offsets[:, last] >> FOUR << SIX),
        (scales[:, last] & NIBBLE) | (offsets[:, last] & NIBBLE) << FOUR,
    ]
    fifth = [_fields(levels >> FOUR, 1, 32)] if codes.grid.high > 15 else []
    return [
        _halves(_super_scales(codes, 0)),
        _halves(_super_scales(codes, 1)),
        *packed,
        *fifth,
        _fields(levels & NIBBLE, 4, 32),
    ]


def _q6_k(codes: Codes) -> list[Bytes]:
    """Q6_K: the lower four bits, the upper two, sixteen 8-bit scales, the super-block's float16 scale."""
    levels = _blocks(codes, codes.grid.low)
    low = _fields(levels & NIBBLE, 4, 64)
    return [low, _fields(levels >> FOUR, 2, 32), _multiples(codes, codes.scales.numpy(), 0), _halves(_super_scales(codes, 0))]


def _super_scales(codes: Codes, which: int) -> "npt.NDArray[np.float32]":
    if codes.super_scales is None:
        raise ValueError(f"blocks of {codes.grid.name} share a super-block's scale, and these codes have none")
    found: npt.NDArray[np.float32] = codes.super_scales[which].numpy()
    return found


def _multiples(codes: Codes, values: "npt.NDArray[np.float32]", which: int) -> Bytes:
    """Each block's scale or offset as an integer in units of its super-block's: uint8 (super-blocks, blocks), two's complement.

    `values`: float32 (rows, blocks); `which`: 0 for scales, 1 for offsets.
    """
    units = np.repeat(_super_scales(codes, which), codes.grid.super_block, axis=1)
    multiples = np.divide(values, units, out=np.zeros_like(values), where=units != 0)
    return np.rint(multiples).astype(np.int8).view(np.uint8).reshape(-1, codes.grid.super_block)


_PACKERS: Mapping[str, Callable[[Codes], list[Bytes]]] = {
    "Q4_0": _legacy(-8, fifth_bit=False),
    "Q4_1": _legacy(0, fifth_bit=False),
    "Q5_0": _legacy(-16, fifth_bit=True),
    "Q5_1": _legacy(0, fifth_bit=True),
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "Q4_K": _k4_or_k5,
    "Q5_K": _k4_or_k5,
    "Q6_K": _q6_k,
}
