"""Cell numbers of vectors as bytes, packed to the last bit, and back.

int8: a byte each. int4, int3 and int2: bit after bit, the first dimension in the lowest bits, so two to a byte, eight to three
bytes and four to a byte. trinary: five digits to the base of three in a byte,
the first the lowest. binary: eight to a byte, the first in the highest bit, as numpy and faiss pack them.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError

Bytes = npt.NDArray[np.uint8]

TRITS = 5
"""Digits to the base of three in a byte: 3^5 = 243."""

BITS = {"int4": 4, "int3": 3, "int2": 2}
"""Bits of a number, at levels that pack them one after another from the lowest bit on."""

_SHARE = {"int8": (1, 1), "int4": (2, 1), "int3": (8, 3), "int2": (4, 1), "trinary": (TRITS, 1), "binary": (8, 1)}
"""So many numbers of a level fill so many bytes."""

_POWERS = np.array([3**digit for digit in range(TRITS)], np.uint8)
_DIGITS = (np.arange(256, dtype=np.uint8)[:, None] // _POWERS % 3).astype(np.uint8)
"""The five digits of every byte."""


def packed_bytes(level: str, dimensions: int) -> int:
    """Bytes of one vector at a level: 2,048 dimensions take 2,048, 1,024, 768, 512, 410 and 256."""
    return -(-dimensions * _SHARE[level][1] // _SHARE[level][0])


def fitting(level: str, size: int) -> int:
    """How many dimensions fit into so many bytes."""
    return size * _SHARE[level][0] // _SHARE[level][1]


def pack(numbers: Bytes, level: str) -> Bytes:
    """Cell numbers, uint8 (vectors, dimensions), as bytes; the last byte of a vector is filled up with zeros."""
    if level == "int8":
        return numbers
    if level == "binary":
        return np.packbits(numbers, axis=1)
    if level in BITS:
        return _joined(numbers, level)[:, : packed_bytes(level, numbers.shape[1])]
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
    if level in BITS:
        return _split(codes, level)[:, :dimensions]
    if codes.size and codes.max() >= 3**TRITS:
        raise VectorError(f"a byte of {int(codes.max())} holds no five digits to the base of three: the file is damaged")
    found: Bytes = _DIGITS[codes].reshape(len(codes), TRITS * codes.shape[1])[:, :dimensions]
    return found


def _joined(numbers: Bytes, level: str) -> Bytes:
    """The bits of numbers one after another, uint8, in whole groups of bytes that begin with a number."""
    count, size = _SHARE[level]
    return _regrouped(numbers, (count, BITS[level]), (size, 8))


def _split(codes: Bytes, level: str) -> Bytes:
    """The numbers in the bytes of `_joined`, uint8, at least as many as went in."""
    count, size = _SHARE[level]
    return _regrouped(codes, (size, 8), (count, BITS[level]))


def _regrouped(numbers: Bytes, given: tuple[int, int], wanted: tuple[int, int]) -> Bytes:
    """Numbers of so many bits, (count, bits) at a time, cut into others of other widths that have as many bits together."""
    (count, bits), (pieces, wide) = given, wanted
    filled = _filled(numbers, count)
    groups = filled.reshape(len(filled), filled.shape[1] // count, count)
    word: Any = np.uint8 if count * bits <= 8 else np.uint32
    words = np.zeros(groups.shape[:2], word)
    for place in range(count):
        words |= groups[:, :, place].astype(word) << word(bits * place)
    found = np.empty((*words.shape, pieces), np.uint8)
    for place in range(pieces):
        found[:, :, place] = words >> word(wide * place) & word((1 << wide) - 1)
    return found.reshape(len(found), words.shape[1] * pieces)


def _filled(numbers: Bytes, multiple: int) -> Bytes:
    """With columns of zeros up to a multiple."""
    missing = -numbers.shape[1] % multiple
    return np.pad(numbers, ((0, 0), (0, missing))) if missing else numbers
