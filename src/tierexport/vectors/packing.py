"""Cell numbers of vectors as bytes, packed to the last bit, and back.

int8: a byte each. int4, int3 and int2: bit after bit, the first dimension in the lowest bits, so two to a byte, eight to three
bytes and four to a byte. trinary: five digits to the base of three in a byte,
the first the lowest. binary: eight to a byte, the first in the highest bit, as numpy and faiss pack them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.base.errors import VectorError
from tierexport.vectors.arrays import Bytes, plain

if TYPE_CHECKING:
    from tierexport.vectors.compiled import Layout

TRITS = 5
"""Digits to the base of three in a byte: 3^5 = 243."""

BITS = {"int4": 4, "int3": 3, "int2": 2}
"""Bits of a number, at levels that pack them one after another from the lowest bit on."""

_SHARE = {"int8": (1, 1), "int4": (2, 1), "int3": (8, 3), "int2": (4, 1), "trinary": (TRITS, 1), "binary": (8, 1)}
"""So many numbers of a level fill so many bytes."""

_WEIGHTS = {
    "int8": (1,),
    "int4": (1, 16),
    "int3": tuple(8**place for place in range(8)),
    "int2": (1, 4, 16, 64),
    "trinary": tuple(3**place for place in range(TRITS)),
    "binary": tuple(2**place for place in reversed(range(8))),
}
"""What the numbers that share bytes are multiplied with before they are added up."""

_DIGITS = (np.arange(256)[:, None] // np.array(_WEIGHTS["trinary"]) % 3).astype(np.uint8)
"""The five digits of every byte."""


def packed_bytes(level: str, dimensions: int) -> int:
    """Bytes of one vector at a level: 2,048 dimensions take 2,048, 1,024, 768, 512, 410 and 256."""
    return -(-dimensions * _SHARE[level][1] // _SHARE[level][0])


def fitting(level: str, size: int) -> int:
    """How many dimensions fit into so many bytes."""
    return size * _SHARE[level][0] // _SHARE[level][1]


def layout(level: str) -> "Layout":
    """How compiled code packs numbers of a level."""
    from tierexport.vectors.compiled import Layout

    return Layout(np.array(_WEIGHTS[level], np.uint32), _SHARE[level][1])


def pack(numbers: Bytes, level: str) -> Bytes:
    """Cell numbers, uint8 (vectors, dimensions), as bytes; the last byte of a vector is filled up with zeros."""
    from tierexport.vectors.compiled import pack_rows

    codes = np.empty((len(numbers), packed_bytes(level, numbers.shape[1])), np.uint8)
    pack_rows(plain(numbers), layout(level), codes)
    return codes


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
    if level in BITS:
        return _split(codes, level)[:, :dimensions]
    if codes.size and codes.max() >= 3**TRITS:
        raise VectorError(f"a byte of {int(codes.max())} holds no five digits to the base of three: the file is damaged")
    found: Bytes = _DIGITS[codes].reshape(len(codes), TRITS * codes.shape[1])[:, :dimensions]
    return found


def _split(codes: Bytes, level: str) -> Bytes:
    """The numbers in bytes of a level of BITS, uint8, at least as many as went in."""
    (count, size), bits = _SHARE[level], BITS[level]
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % size)))
    groups = filled.reshape(len(filled), filled.shape[1] // size, size)
    word: Any = np.uint8 if size == 1 else np.uint32
    words = np.zeros(groups.shape[:2], word)
    for place in range(size):
        words |= groups[:, :, place].astype(word) << word(8 * place)
    found = np.empty((*words.shape, count), np.uint8)
    for place in range(count):
        found[:, :, place] = words >> word(bits * place) & word((1 << bits) - 1)
    return found.reshape(len(found), words.shape[1] * count)
