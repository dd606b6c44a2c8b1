"""Large blocks of memory are given back as they are freed."""

import os
import platform
import subprocess
import sys

import pytest

HELD = """
import ctypes, os, sys
from tierexport.base.memory import give_back_large_blocks

if sys.argv[1:] == ["give back"]:
    give_back_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def block(size):
    place = libc.malloc(size)
    ctypes.memset(place, 1, size)
    return place

libc.free(block(31 << 20))  # from now on glibc itself takes smaller blocks from the heap
blocks = [block(8 << 20) for _ in range(16)]
end = block(1 << 20)  # what lies below it, the heap keeps
for place in blocks:
    libc.free(place)
held = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
print(held >> 20, os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_freed_blocks_are_the_process_s_no_longer() -> None:
    """128 MB in blocks that glibc alone would keep; and torch is asked for huge pages, unless the user has said otherwise."""

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        others = {name: each for name, each in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        command = [sys.executable, "-c", HELD, *arguments]
        done = subprocess.run(command, env=others | environment, capture_output=True, text=True, check=True)
        held, pages = done.stdout.split()
        return int(held), pages

    kept, given_back = run(), run("give back")
    assert kept[0] - given_back[0] > 100
    assert (kept[1], given_back[1]) == ("None", "1")
    assert run("give back", THP_MEM_ALLOC_ENABLE="0")[1] == "0"
