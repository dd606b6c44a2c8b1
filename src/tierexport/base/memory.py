"""How this process takes large blocks of memory and gives them back."""

import ctypes
import mmap
import os
import sys
from typing import Any

import numpy as np

from tierexport.base.records import Floats

M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""

LARGE = 1 << 22
"""Bytes of a block from which on it is given back as soon as it is freed."""


def give_back_large_blocks() -> None:
    """Let every large block be given back when it is freed; where malloc is not glibc's, nothing changes.

    glibc raises its own limit up to 32 MB as blocks are freed (mallopt(3)), and what lies below it stays in the arena of the
    thread that took it: several times what a computation on tensors of some megabytes holds at once. torch asks for huge
    pages (its THP_MEM_ALLOC_ENABLE, read once), or fetching new pages would cost what is won.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)


def read_rows(array: Floats, rows: slice) -> Floats:
    """Rows of an array, copied; of a memory map this process keeps nothing else, so that a file's size is not its memory."""
    found: Floats = np.array(array[rows])
    base: Any = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = getattr(base, "base", None)
    if base is not None and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
    return found
