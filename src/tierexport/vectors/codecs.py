"""Vectors in fewer bits: int8, int4, int3, int2, trinary and binary, one formula for all.

A dimension's range [low, high] is cut into cells of equal width; a value becomes the number of its cell, and comes back
as the cell's middle. A table may give each dimension cells of its own instead. int8 is sentence-transformers'
`quantize_embeddings` (its "uint8"; "int8" is the same less 128), int4 faiss's QT_4bit, binary the bits of both. packing.py
puts the numbers of cells into bytes.

Values beyond the range, infinities too, take the outermost cell and never wrap around; NaN is refused. A zero vector is
coded like any other.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tierexport.base.errors import VectorError
from tierexport.base.records import Floats
from tierexport.base.tensor_file import Parts
from tierexport.vectors.arrays import LARGE, Bytes, Codes, Vectors, as_codes, as_floats, plain
from tierexport.vectors.packing import layout, packed_bytes, unpack
from tierexport.vectors.tables import Table

if TYPE_CHECKING:
    from tierexport.vectors.compiled import Cells, Layout

CELLS = {"int8": 255, "int4": 15, "int3": 8, "int2": 4, "trinary": 3, "binary": 2}
"""Cells that a range is cut into. Of int8 and int4 the upper end itself has a cell of its own, as in the libraries."""

TOP = {"int8": 255, "int4": 15, "int3": 7, "int2": 3, "trinary": 2, "binary": 1}
"""The highest number of a cell."""

COMPARED = ("cosine", "dot", "euclidean")
"""Similarities that can be computed from a matrix product with the codes, so that nothing has to be decoded."""

CHUNK_ROWS = 512
"""Vectors that are coded and decoded at a time: few enough to stay in a core's cache from step to step."""


@dataclass(frozen=True)
class Codec:
    """How vectors of one model are stored: a level, and the range of each number that is stored, float32 (width,).

    Where the range is `per_vector`, `low` and `high` are multiples of each vector's root mean square; that scale is
    not stored, so what comes back has the vector's direction alone, which is all that a cosine needs.
    `rotation`, float32 (dimensions, width) or None, comes before everything else; its rows are orthonormal. Where there is
    none, the width is the number of dimensions.
    `table`, or None: cells of any width in place of equal ones; `low` and `high` are then where it begins and ends.
    `cut_from`, or None: of vectors of so many dimensions the first ones alone are coded, brought to unit length again where
    they are compared by cosine (as models trained for it are used: Matryoshka, arXiv 2205.13147).
    `asymmetric`: documents alone are coded, queries stay as they are.
    `similarity`: by what vectors are compared, "cosine", "dot" or "euclidean". For a cosine they are brought to unit length
    before they are coded; for the others they keep the length that the model gave them.
    `probe`, float32 (dimensions,) or None: the model's unit vector of one known sentence, a fingerprint that detects a codec
    fitted for another model.
    """

    level: str
    low: Floats
    high: Floats
    per_vector: bool = False
    rotation: Floats | None = None
    asymmetric: bool = False
    probe: Floats | None = None
    similarity: str = "cosine"
    table: Table | None = None
    cut_from: int | None = None
    cells: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Raises VectorError for what can't be a codec."""
        self._check_similarity()
        self._check_arrays()
        width = (self.high - self.low).astype(np.float32) / np.float32(CELLS[self.level])
        object.__setattr__(self, "cells", np.where(width <= 0, np.float32(1), width))

    def _check_similarity(self) -> None:
        if self.level not in CELLS:
            raise VectorError(f"{self.level!r} is no level: {', '.join(CELLS)}")
        if self.similarity not in COMPARED:
            raise VectorError(f"quantized vectors are compared by {', '.join(COMPARED)}, not by {self.similarity!r}")
        if self.per_vector and self.similarity != "cosine":
            raise VectorError(f"ranges per vector drop its length, which {self.similarity!r} counts: fit without --per-vector")

    def _check_arrays(self) -> None:
        tabled = (self.table.borders, self.table.centers) if self.table else ()
        arrays = [each for each in (self.low, self.high, self.rotation, self.probe, *tabled) if each is not None]
        if any(each.dtype != np.float32 or not np.isfinite(each).all() for each in arrays):
            raise VectorError("a codec's numbers have to be float32 and finite")
        if self.low.shape != self.high.shape or self.low.ndim != 1 or not self.width:
            raise VectorError("a codec's bounds have to be one pair for each dimension")
        if not (self.low <= self.high).all() or max(np.abs(each).max() for each in (self.low, self.high, *tabled)) > LARGE:
            raise VectorError(f"a codec's ranges have to go upwards, and lie within {LARGE:g}")
        if self.table is not None:
            self._check_table(self.table)
        if self.rotation is not None and (self.rotation.ndim != 2 or self.rotation.shape[1] != self.width):
            raise VectorError(
                f"a rotation of shape {self.rotation.shape} doesn't make the {self.width} numbers that are stored"
            )
        if self.cut_from is not None and not self.kept < self.cut_from:
            raise VectorError(f"the first {self.kept} of {self.cut_from} dimensions are no cut")
        if self.probe is not None and self.probe.shape != (self.dimensions,):
            raise VectorError(f"a probe of shape {self.probe.shape} is no vector of {self.dimensions} dimensions")

    def _check_table(self, table: Table) -> None:
        shapes = (self.width, TOP[self.level]), (self.width, TOP[self.level] + 1)
        if (table.borders.shape, table.centers.shape) != shapes:
            raise VectorError(f"a table of {self.level} cells has to have {shapes[0]} borders and {shapes[1]} centers")
        if any((np.diff(each) < 0).any() for each in (table.borders, table.centers)):
            raise VectorError("a table's cells have to go upwards")

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.level} documents" if self.asymmetric else self.level

    @property
    def width(self) -> int:
        """Numbers that are stored of each vector."""
        return len(self.low)

    @property
    def dimensions(self) -> int:
        """Dimensions of the vectors that are given to be coded, and that come back."""
        return self.kept if self.cut_from is None else self.cut_from

    @property
    def kept(self) -> int:
        """How many of them, from the first on, are coded."""
        return self.width if self.rotation is None else self.rotation.shape[0]

    @property
    def bytes(self) -> int:
        """Bytes of one vector."""
        return packed_bytes(self.level, self.width)

    def as_json(self) -> dict[str, Any]:
        """Its entry in manifests and reports."""
        return {
            "level": self.level,
            "dimensions": self.dimensions,
            "kept": self.kept,
            "width": self.width,
            "bytes": self.bytes,
            "per_vector": self.per_vector,
            "rotated": self.rotation is not None,
            "asymmetric": self.asymmetric,
            "similarity": self.similarity,
        }

    def encode(self, vectors: Vectors) -> Bytes:
        """Packed codes, uint8 (vectors, bytes), of vectors as long as those that bounds were fitted on.

        That is of unit length where they are compared by cosine, else as the model puts them out. Raises VectorError for NaN
        or another number of dimensions.
        """
        return self._encoded(vectors, to_unit=False)

    def decode(self, codes: Codes) -> Floats:
        """The values of packed codes, float32 (vectors, dimensions), the rotation undone; zeros where dimensions were cut."""
        values = self.values(unpack(as_codes(codes), self.level, self.width))
        found = values if self.rotation is None else values @ self.rotation.T
        return found if self.cut_from is None else np.pad(found, ((0, 0), (0, self.cut_from - self.kept)))

    def coded(self, vectors: Vectors) -> Bytes:
        """Packed codes, uint8 (vectors, bytes), of vectors that first get the length that the codec was fitted on.

        Memory is bounded by what is returned; `vectors`, (vectors, dimensions), may be a memory map.
        """
        return self._encoded(vectors, to_unit=self.similarity == "cosine")

    def coded_in_parts(self, vectors: Vectors) -> Parts:
        """The same, coded as it is asked for, some vectors at a time, so that memory does not grow with their number."""
        taken, to_unit = _sliced(vectors), self.similarity == "cosine"

        def parts() -> Iterator[Bytes]:
            for rows in _chunks(len(taken)):
                part = np.empty((len(taken[rows]), self.bytes), np.uint8)
                self._code(taken, rows, to_unit, part)
                yield part

        return Parts((len(taken), self.bytes), np.dtype(np.uint8), parts())

    def _encoded(self, vectors: Vectors, to_unit: bool) -> Bytes:
        """Packed codes, uint8 (vectors, bytes); `to_unit`: of vectors that get unit length first."""
        taken = _sliced(vectors)
        found = np.empty((len(taken), self.bytes), np.uint8)
        for rows in _chunks(len(taken)):
            self._code(taken, rows, to_unit, found[rows])
        return found

    def _code(self, vectors: Vectors, rows: slice, to_unit: bool, found: Bytes) -> None:
        """Put the packed codes of some rows into `found`, uint8 (rows, bytes)."""
        from tierexport.vectors.compiled import code_rows

        values = self._taken(vectors[rows])
        if not self._is_plain:
            values = self._prepared(_scaled(values, to_unit, rows.start))
        _refuse(code_rows(plain(values), to_unit and self._is_plain, *self._coding, found), rows.start)

    @property
    def _is_plain(self) -> bool:
        """Whether values are counted in cells as they come."""
        return self.cut_from is None and self.rotation is None and not self.per_vector

    @functools.cached_property
    def _coding(self) -> "tuple[Cells, Layout]":
        """Cells and layout as compiled code takes them."""
        from tierexport.vectors.compiled import Cells

        borders = np.empty((0, self.width), np.float32)
        if self.table is not None:
            borders = np.ascontiguousarray(self.table.borders.T)
        elif self.level == "binary":  # a value on the border is 0, as in sentence-transformers
            borders = np.asarray((self.low + self.high) / 2, np.float32)[None]
        return Cells(self.low, self.cells, np.float32(TOP[self.level]), borders), layout(self.level)

    def restored(self, vectors: Vectors) -> Floats:
        """Vectors after coding and decoding, float32 (vectors, dimensions); memory is bounded as in `coded`."""
        codes = self.coded(vectors)
        found = np.empty((len(vectors), self.dimensions), np.float32)
        for rows in _chunks(len(vectors)):
            found[rows] = self.decode(codes[rows])
        return found

    def scaled(self, vectors: Floats) -> Floats:
        """Vectors of unit length, or for a similarity that counts lengths as they are."""
        return _scaled(vectors, self.similarity == "cosine")

    def prepared(self, vectors: Vectors) -> Floats:
        """Vectors as cells are counted in: cut, rotated, and of unit root mean square where ranges are per vector."""
        return self._prepared(_scaled(self._taken(vectors), to_unit=False))

    def _prepared(self, found: Floats) -> Floats:
        """The same for float32 within LARGE."""
        if self.cut_from is not None:
            found = self.scaled(found[:, : self.kept])
        if self.rotation is not None:
            found = found @ self.rotation
        if not self.per_vector:
            return found
        scale = np.sqrt(np.mean(np.square(found, dtype=np.float64), axis=1, keepdims=True))
        return (found / np.where(scale > 0, scale, 1)).astype(np.float32)

    def _taken(self, vectors: Vectors) -> Floats:
        """Vectors as float32 (vectors, dimensions). Raises VectorError for another shape."""
        found = as_floats(vectors)
        if found.ndim != 2 or found.shape[1] != self.dimensions:
            raise VectorError(f"vectors of shape {found.shape}, where the codec has {self.dimensions} dimensions")
        return found

    def numbers(self, vectors: Vectors) -> Bytes:
        """The cell of every value, uint8 (vectors, width)."""
        return unpack(self.encode(vectors), self.level, self.width)

    def values(self, numbers: Bytes) -> Floats:
        """What every cell stands for, float32 (vectors, width)."""
        scale, offset = self.line
        return self.steps(numbers) * scale + offset

    def steps(self, numbers: Bytes) -> Floats:
        """What `line` makes values of, float32 (vectors, width): numbers of equal cells, or a table's values themselves."""
        return numbers.astype(np.float32) if self.table is None else self.table.values(numbers)

    @functools.cached_property
    def line(self) -> tuple[Floats, Floats]:
        """Scale and offset, float32 (width,), that make values of `steps`; what has no range is its only value."""
        if self.table is not None:
            return np.ones(self.width, np.float32), np.zeros(self.width, np.float32)
        flat = self.high <= self.low
        scale, offset = np.where(flat, 0, self.cells), np.where(flat, self.low, self.low + self.cells / 2)
        return scale.astype(np.float32), offset.astype(np.float32)


def _scaled(vectors: Floats, to_unit: bool, first: int = 0) -> Floats:
    """Rows within LARGE, float32, and of unit length where that is asked for; a zero row stays zero. Raises VectorError for
    NaN; `first`: the number of the first row.
    """
    from tierexport.vectors.compiled import scale_rows

    found = np.empty(vectors.shape, np.float32)
    _refuse(scale_rows(plain(vectors), to_unit, found), first)
    return found


def _sliced(vectors: Vectors) -> Any:
    """Vectors as an array, of any type, of which rows can be taken; nothing is read of a memory map."""
    return vectors if isinstance(vectors, np.ndarray) else as_floats(vectors)


def _refuse(unknown: int, first: int) -> None:
    """Raises VectorError for a row that holds NaN, unless it is -1; `first`: the number of the first row."""
    if unknown >= 0:
        raise VectorError(f"vector {first + unknown} holds NaN, which no code stands for")


def _chunks(rows: int) -> Iterator[slice]:
    for first in range(0, max(rows, 1), CHUNK_ROWS):  # one where there are none, so that their shape is looked at
        yield slice(first, first + CHUNK_ROWS)
