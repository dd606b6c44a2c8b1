"""Where work runs that can be divided: in this process, on one worker per core, or on what else has a `map` (base/cluster.py).

Threads that share one small product wait for each other at its end, so that on a machine with other work they take several
times as long as one. Workers share no product: other work slows them in proportion and no more.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

from tierexport.base.errors import MachineError

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """How many cores this process may use: those that it is let run on, and no more than OMP_NUM_THREADS grants it."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("OMP_NUM_THREADS", "")
    return min(here, int(granted)) if granted.isdecimal() and int(granted) else here


class Workers(Protocol):
    """What takes independent pieces of work; `count`: how many of them it does at a time."""

    count: int

    def map(
        self, work: Callable[[T], R], items: Iterable[T], done: Callable[[], None] = lambda: None, gpu: bool = False
    ) -> list[R]:
        """What `work` returns for each item, in their order; `done` is called after each. What it raises is raised here.

        Items are taken one by one as they are needed. `gpu`: each worker takes a GPU.
        """


class ThisProcess:
    """One piece after the other, here."""

    count = 1

    def map(
        self, work: Callable[[T], R], items: Iterable[T], done: Callable[[], None] = lambda: None, gpu: bool = False
    ) -> list[R]:
        """As `Workers` says."""
        del gpu  # `work` knows its device
        found = []
        for item in items:
            found.append(work(item))
            done()
        return found


HERE = ThisProcess()


def check_keys(made: Sequence[str], expected: Sequence[str]) -> None:
    """Raises MachineError where workers kept what they made under other keys, which digest their code and libraries."""
    if list(made) != list(expected):
        raise MachineError("a worker has another version of tierexport or of its libraries than this machine: install the same")


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
