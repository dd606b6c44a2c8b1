"""Locks between the processes that share a cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from tierexport.base.digests import value_digest
from tierexport.base.errors import MachineError
from tierexport.base.files import writing
from tierexport.base.paths import cache_dir


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a path's lock among all who share the cache, where lock files live, never beside results.

    Raises MachineError when somebody else holds it and `wait` is False.
    """
    folder = cache_dir() / "locks"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{value_digest(str(path.resolve()))[:16]}.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise MachineError(f"another run is at work on {path}: wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()
