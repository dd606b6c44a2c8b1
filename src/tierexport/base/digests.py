"""SHA-256 of files, folders and JSON values."""

import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

CHUNK = 1 << 20

RECENT = 100_000_000
"""Nanoseconds in which a file may be written twice under one time: what is so young is read again."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; read once per run as long as the file stays what it is."""
    found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < RECENT:
        return _read(path)
    return _digest(str(path.resolve()), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@functools.lru_cache(4096)
def _digest(path: str, _: tuple[int, ...]) -> str:
    """The digest of a file in the state that the numbers of its `stat` tell: any write changes the last."""
    return _read(Path(path))


def _read(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def value_digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, in hex; equal values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path relative to the folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
