"""Codes as databases take them: whole numbers that they compare themselves, and PostgreSQL's binary format."""

import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tierexport.base.errors import VectorError
from tierexport.vectors.arrays import Codes, Vectors, as_codes
from tierexport.vectors.codecs import TOP, Codec
from tierexport.vectors.packing import check_codes, unpack

SIGNATURE = b"PGCOPY\n\xff\r\n\0"
"""What a file of PostgreSQL's COPY ... WITH (FORMAT binary) begins with."""


def as_int8(codec: Codec, codes: Codes) -> npt.NDArray[np.int8]:
    """Whole numbers in proportion to the values that codes stand for, int8 (vectors, width): their cosines are the values' own.

    int8 codes become sentence-transformers' "int8", binary ones 1 and -1. Raises VectorError for a codec whose dimensions
    have ranges of their own, and for one that is wider than its vectors, for undoing that changes cosines.
    """
    zero = _twice_zero(codec)
    if zero is None or codec.width > codec.kept:
        raise VectorError(
            f"numbers of these {codec.level} codes don't compare as the values do: "
            "fit with --per-vector, and without --widen and tables of cells"
        )
    step = 1 + zero % 2
    counted = unpack(as_codes(codes), codec.level, codec.width) * np.uint8(step) - np.uint8(zero * step // 2)
    return counted.view(np.int8)  # what went below zero came back from 256, as int8 has it


def _twice_zero(codec: Codec) -> int | None:
    """Twice the number of the cell whose middle is zero, for zero may lie between two cells; None where dimensions differ in it
    or int8 can't hold the numbers counted from there.
    """
    scale, offset = (each.astype(np.float64) for each in codec.line)
    if codec.table is not None or np.ptp(scale) or np.ptp(offset) or not scale[0]:
        return None
    exact = -2 * offset[0] / scale[0]
    whole = round(exact)
    fits = whole == 256 if codec.level == "int8" else 0 <= whole <= 2 * TOP[codec.level]
    return whole if fits and abs(exact - whole) < 1e-2 else None


def postgres_bits(codes: Codes, codec: Codec) -> list[bytes]:
    """Binary codes as fields of type `bit(width)`."""
    found = as_codes(codes)
    if codec.level != "binary":
        raise VectorError(f"a bit for each dimension is what binary codes have, not {codec.level}")
    check_codes(found, codec.level, codec.width)
    return [struct.pack(">i", codec.width) + row.tobytes() for row in found]


def postgres_vectors(values: Vectors, half: bool = False) -> list[bytes]:
    """Numbers (vectors, dimensions) as fields of pgvector's type `vector`, or `halfvec`, exact for those of `as_int8`."""
    rows = np.asarray(values, ">f2" if half else ">f4")
    return [struct.pack(">HH", rows.shape[1], 0) + row.tobytes() for row in rows]


def postgres_copy(rows: Iterable[Sequence[bytes]]) -> Iterator[bytes]:
    """The pieces of a file that COPY ... FROM ... WITH (FORMAT binary) reads: rows of fields as their types send them."""
    yield SIGNATURE + struct.pack(">ii", 0, 0)
    for row in rows:
        yield struct.pack(">h", len(row)) + b"".join(struct.pack(">i", len(field)) + field for field in row)
    yield struct.pack(">h", -1)
