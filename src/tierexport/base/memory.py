"""How this process gives memory back to the system."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""

LARGE = 1 << 20
"""Bytes of a block from which on it is given back as soon as it is freed."""


def give_back_large_blocks() -> None:
    """Let every large block be given back when it is freed; where malloc is not glibc's, nothing changes.

    glibc raises its own limit up to 32 MB as blocks are freed (mallopt(3)), and what lies below it stays in the arena of the
    thread that took it: some times what a computation on tensors of some megabytes holds at once.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)
