"""Files that are whole or absent: written beside their place, synced, renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tierexport.base.errors import MachineError, TierexportError
from tierexport.base.sizes import shown_size

_CANT_WRITE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def tells_of_full_disk(text: str) -> bool:
    """Whether an error's text means a full disk: numpy's have no number, a log has only text."""
    signs = ("No space left", "File too large", " requested and ", "Not enough free space")
    return any(sign in text for sign in signs)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the errors of a full disk or a forbidden folder into a MachineError that names `target`."""
    try:
        yield
    except TierexportError:
        raise
    except Exception as error:  # safetensors' are no OSError
        if tells_of_full_disk(str(error)) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(f"no space left while writing {target}: free some and run again") from error
        if isinstance(error, OSError) and (error.errno in _CANT_WRITE or _missing_above(error, target)):
            raise MachineError(f"can't write {target}: {error.strerror}; choose another folder") from error
        raise


def _missing_above(error: OSError, target: Path) -> bool:
    """Whether a folder that `target` lies in, or a file there, could not be made, as in /proc; another missing file is none."""
    missing = Path(str(error.filename)).absolute()
    partial = missing.parent.resolve() == target.resolve().parent and missing.name.startswith(f".{target.name}.")
    return isinstance(error, FileNotFoundError) and (partial or missing in target.resolve().parents)


def check_room(place: Path, size: int) -> None:
    """Raises MachineError where the disk that a path is on, or will be, has less than `size` bytes left."""
    there = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        left = f"its disk has {shown_size(free)} left"
        raise MachineError(f"{place} will take about {shown_size(size)}, and {left}: free some, or name another folder")


def sync(path: Path) -> None:
    """Flush a file, or a folder with all it holds, to the disk."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` once all is written: that is either the old one or the new one, never
    a part.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                yield file
            sync(partial)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file, whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def clone(folder: Path, into: Path) -> None:
    """What a folder holds in another, by hard links: its files may be replaced there, but not changed in place."""
    shutil.copytree(folder, into, symlinks=True, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
