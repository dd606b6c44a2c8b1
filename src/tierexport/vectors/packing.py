"""Cell numbers of vectors as bytes, packed to the last bit, and back.

int8: a byte each. int4: two to a byte, the even dimension in the low half. trinary: five digits to the base of three in a byte,
the first the lowest. binary: eight to a byte, the first in the highest bit, as numpy and faiss pack them.
"""

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError

Bytes = npt.NDArray[np.uint8]

TRITS = 5
"""Digits to the base of three in a byte: 3^5 = 243."""

_POWERS = np.array([3**digit for digit in range(TRITS)], np.uint8)
_DIGITS = (np.arange(256, dtype=np.uint8)[:, None] // _POWERS % 3).astype(np.uint8)
"""The five digits of every byte."""


def packed_bytes(level: str, dimensions: int) -> int:
    """Bytes of one vector at a level: 2,048 dimensions take 2,048, 1,024, 410 and 256."""
    per_byte = {"int8": 1, "int4": 2, "trinary": TRITS, "binary": 8}[level]
    return -(-dimensions // per_byte)


def pack(numbers: Bytes, level: str) -> Bytes:
    """Cell numbers, uint8 (vectors, dimensions), as bytes; the last byte of a vector is filled up with zeros."""
    if level == "int8":
        return numbers
    if level == "binary":
        return np.packbits(numbers, axis=1)
    if level == "int4":
        even = _filled(numbers, 2)
        return even[:, ::2] | even[:, 1::2] << np.uint8(4)
    fives = _filled(numbers, TRITS).reshape(len(numbers), packed_bytes(level, numbers.shape[1]), TRITS)
    found: Bytes = (fives * _POWERS).sum(2, dtype=np.uint8)
    return found


def check_codes(codes: Bytes, level: str, dimensions: int) -> None:
    """Refuse what is not uint8 (vectors, bytes) of a level. Raises VectorError."""
    wanted = packed_bytes(level, dimensions)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != wanted:
        raise VectorError(
            f"codes of shape {codes.shape} and type {codes.dtype}: {level} takes {wanted} bytes for {dimensions} dimensions"
        )


def unpack(codes: Bytes, level: str, dimensions: int) -> Bytes:
    """Cell numbers, uint8 (vectors, dimensions), of bytes from `pack`. Raises VectorError for bytes that it does not write."""
    check_codes(codes, level, dimensions)
    if level == "int8":
        return codes
    if level == "binary":
        return np.unpackbits(codes, axis=1, count=dimensions)
    if level == "int4":
        return np.stack([codes & 15, codes >> 4], 2).reshape(len(codes), 2 * codes.shape[1])[:, :dimensions]
    if codes.size and codes.max() >= 3**TRITS:
        raise VectorError(f"a byte of {int(codes.max())} holds no five digits to the base of three: the file is damaged")
    found: Bytes = _DIGITS[codes].reshape(len(codes), TRITS * codes.shape[1])[:, :dimensions]
    return found


def _filled(numbers: Bytes, multiple: int) -> Bytes:
    """With columns of zeros up to a multiple."""
    return np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % multiple)))
