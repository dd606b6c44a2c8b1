"""One worker per core, each with one thread: how every computation that can be divided is divided.

Threads that share one small product wait for each other at its end, so that on a machine with other work they take several
times as long as one. Workers share no product: other work slows them in proportion and no more.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_cores(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """What `work` returns for each item, in their order; each worker takes the next item that is left.

    `work` has to let go of the interpreter's lock for most of its time, as torch, numpy and compiled code do. What it raises
    is raised here.
    """
    with threads(1), ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(work, items))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, each of torch's products runs on so many threads; on 1, on that which asks for it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
