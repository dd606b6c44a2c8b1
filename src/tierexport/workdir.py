"""Files that are whole or absent, and stages that are done once.

Knows nothing of models. A stage is a folder made by one function from inputs that a key digests:
it is written beside its place, synced, renamed, and recorded with the digest of every file in it.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from tierexport.errors import ArtifactError, MachineError

CHUNK = 1 << 20


def cache_dir() -> Path:
    """Where stages that several recipes share are kept: TIEREXPORT_CACHE or the user's cache."""
    named = os.environ.get("TIEREXPORT_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("tierexport")


def expanded(name: str) -> Path:
    """A path with `~` resolved; where there is no such user it stays as it is, and is what will be said to be missing."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def value_digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, in hex; equal values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 over tierexport's own code: what was made by other code is not taken for fresh."""
    package = Path(__file__).parent
    return value_digest({path.relative_to(package).as_posix(): file_digest(path) for path in package.rglob("*.py")})


def stage_key(*inputs: Any) -> str:
    """The key of a stage that tierexport's code makes from JSON-able inputs."""
    return value_digest([code_digest(), *inputs])


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
    except OSError as error:
        if tells_of_full_disk(str(error)) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MachineError(f"no space left while writing {target}: free some and run again") from error
        if error.errno in _CANT_WRITE or _missing_above(error, target):
            raise MachineError(f"can't write {target}: {error.strerror}; choose another folder") from error
        raise


def _missing_above(error: OSError, target: Path) -> bool:
    """Whether a folder that `target` lies in, or a file there, could not be made, as in /proc; another missing file is none."""
    missing = Path(str(error.filename)).absolute()
    partial = missing.parent.resolve() == target.resolve().parent and missing.name.startswith(f".{target.name}.")
    return isinstance(error, FileNotFoundError) and (partial or missing in target.resolve().parents)


def sync(path: Path) -> None:
    """Flush a file, or a folder with all it holds, to the disk."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file so that it is either the old one or the new one, never a part."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(partial)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path relative to the folder, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


class Stages:
    """The finished stages below one folder.

    `root/NAME/` holds what a stage made, `root/.stages/NAME.json` the key it was made for and the
    digest of each file. A stage whose key or files differ is made again.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a stage that is finished and unharmed, or None."""
        try:
            record: dict[str, Any] = json.loads(self._record_path(name).read_text())
        except (OSError, ValueError):
            return None
        return record if folder_digests(self.root / name) == record.get("files") else None

    def notes(self, name: str) -> Any:
        """What the function returned that made a stage."""
        return json.loads(self._record_path(name).read_text())["notes"]

    def run(self, name: str, key: str, make: Callable[[Path], Any]) -> Path:
        """The folder that `make` fills for `key`, made now unless it is there already.

        What `make` returns is kept as the stage's notes, and has to be JSON-able. Raises MachineError when it can't be written.
        """
        target = self.root / name
        with writing(target), locked(target):
            if (record := self.record(name)) and record["key"] == key:
                return target
            partial = self.root / f".{name}.partial"
            _remove(partial)
            partial.mkdir(parents=True)
            try:
                notes = make(partial)
                sync(partial)
            except BaseException:
                _remove(partial)
                raise
            self._record_path(name).unlink(missing_ok=True)
            _remove(target)
            partial.rename(target)
            write_json(self._record_path(name), {"key": key, "notes": notes, "files": folder_digests(target)})
        return target

    def clear(self) -> None:
        """Remove all stages, and their folder."""
        _remove(self.root)

    def drop(self, name: str) -> None:
        """Remove a stage and its record, if they are there."""
        self._record_path(name).unlink(missing_ok=True)
        _remove(self.root / name)

    def _record_path(self, name: str) -> Path:
        return self.root / ".stages" / f"{name}.json"


def is_artifact(folder: Path) -> bool:
    """Whether a folder was built or published by tierexport, by its manifest."""
    return (folder / "manifest.json").is_file()


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder beside `out` to build an artifact in; on success it takes `out`'s place.

    It starts as what a killed run left there, or as a clone of `out` by hard links (files are only
    ever replaced, never changed in place), so stages that still hold are reused. An error removes
    it. Raises ArtifactError when `out` is something else than an artifact, MachineError when another
    build of it is running or the place can't be written.
    """
    with _replacing(out.resolve(), is_artifact, "an artifact") as work:
        if not work.exists():
            work.mkdir()
            if out.exists():
                clone(out, work)
        for leftover in work.glob(".*.partial"):
            _remove(leftover)
        try:
            yield work
        except Exception:
            _remove(work)
            raise


@contextmanager
def making(out: Path, ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """An empty folder beside `out`; on success it takes the place of what is there, if that is `ours`: of the kind `what`.

    Whatever ends it before that removes it. Raises as `building` does.
    """
    with _replacing(out.resolve(), ours, what) as work:
        _remove(work)
        work.mkdir()
        try:
            yield work
        except BaseException:
            _remove(work)
            raise


@contextmanager
def _replacing(out: Path, ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """A path beside `out`; the folder made there takes its place; after a kill in between, the next run puts it back."""
    if not out.name:
        raise ArtifactError(f"{out} can't be replaced: name another folder with --out")
    work, old = out.with_name(f".{out.name}.building"), out.with_name(f".{out.name}.replaced")
    with writing(out), locked(out, wait=False):
        if old.is_dir() and not out.exists():
            old.rename(out)
        _remove(old)
        _check_replaceable(out, ours, what)
        work.parent.mkdir(parents=True, exist_ok=True)
        yield work
        _check_replaceable(out, ours, what)  # hours may have passed
        if out.exists():
            out.rename(old)
        work.rename(out)
        _remove(old)


def _check_replaceable(out: Path, ours: Callable[[Path], bool], what: str) -> None:
    if out.exists() and not ours(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(
            f"{out} exists and is not {what}, so it is not replaced: name another folder with --out, or remove it"
        )


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


def clone(folder: Path, into: Path) -> None:
    """What a folder holds in another, by hard links: its files may be replaced there, but not changed in place."""
    shutil.copytree(folder, into, symlinks=True, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
