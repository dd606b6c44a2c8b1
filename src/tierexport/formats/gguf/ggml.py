"""Rounds float32 rows onto GGUF's grids through ggml itself, the library llama-cpp-python carries."""

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tierexport.base.errors import MachineError
from tierexport.base.records import Floats
from tierexport.base.workers import cores

CHUNK_VALUES = 1 << 20
"""Values rounded by one call: enough to be worth a thread, little enough to bound the memory."""

_SUFFIX = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")


@functools.cache
def library() -> ctypes.CDLL:
    """libggml-base of the installed llama-cpp-python. Raises MachineError when there is none."""
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise MachineError("llama-cpp-python is not installed: pip install llama-cpp-python")
    path = Path(found.origin).parent / "lib" / f"libggml-base.{_SUFFIX}"
    try:
        ggml = ctypes.CDLL(str(path))
    except OSError as error:
        raise MachineError(f"{path} can't be loaded ({error}): reinstall llama-cpp-python") from error
    # size_t ggml_quantize_chunk(type, src, dst, start, nrows, n_per_row, imatrix), ggml.h
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return ggml


def quantize(rows: Floats, native: gguf.GGMLQuantizationType, importance: Floats | None) -> Iterator[npt.NDArray[np.uint8]]:
    """Round a float32 matrix, in order, in pieces of uint8 (rows, bytes per row).

    `rows` is (rows, columns) or (experts, rows, columns); `importance` is float32 (columns,), or
    (experts · columns,), or None. Pieces are rounded side by side; at most one per core is held.
    Every row is rounded by itself, so the pieces and the threads don't show in the result.
    """
    if native == gguf.GGMLQuantizationType.F32:
        yield rows.astype(np.float32, copy=False).reshape(-1, rows.shape[-1]).view(np.uint8)
        return
    if native == gguf.GGMLQuantizationType.F16:
        with np.errstate(over="ignore"):  # whoever writes them looks for infinities
            yield rows.reshape(-1, rows.shape[-1]).astype(np.float16).view(np.uint8)
        return
    experts = rows.reshape(-1, *rows.shape[-2:])
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32).reshape(len(experts), -1)
    pieces = list(_pieces(experts, weights))
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(pieces), cores()):
            yield from pool.map(_quantize_piece, pieces[first : first + cores()], repeat(native))


def _pieces(experts: Floats, weights: Floats | None) -> Iterator[tuple[Floats, Floats | None]]:
    step = max(CHUNK_VALUES // experts.shape[-1], 1)
    for index, expert in enumerate(experts):
        for start in range(0, len(expert), step):
            yield expert[start : start + step], None if weights is None else weights[index]


def _quantize_piece(piece: tuple[Floats, Floats | None], native: gguf.GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    rows, importance = piece
    source = np.ascontiguousarray(rows, np.float32)
    out = np.empty((len(source), row_bytes(native, source.shape[1])), np.uint8)
    pointer = None if importance is None else importance.ctypes.data
    written = library().ggml_quantize_chunk(
        int(native), source.ctypes.data, out.ctypes.data, 0, source.shape[0], source.shape[1], pointer
    )
    if written != out.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {native.name} where {out.nbytes} were expected")
    return out


def row_bytes(native: gguf.GGMLQuantizationType, columns: int) -> int:
    """Bytes of one row: blocks times bytes per block."""
    block, size = gguf.GGML_QUANT_SIZES[native]
    return int(columns // block * size)
