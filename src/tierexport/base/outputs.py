"""Folders that users name: made beside their place, which they take when they are whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tierexport.base.errors import ArtifactError
from tierexport.base.files import clone, remove, writing
from tierexport.base.locks import locked


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
            remove(leftover)
        try:
            yield work
        except Exception:
            remove(work)
            raise


@contextmanager
def making(out: Path, ours: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """An empty folder beside `out`; on success it takes the place of what is there, if that is `ours`: of the kind `what`.

    Whatever ends it before that removes it. Raises as `building` does.
    """
    with _replacing(out.resolve(), ours, what) as work:
        remove(work)
        work.mkdir()
        try:
            yield work
        except BaseException:
            remove(work)
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
        remove(old)
        _check_replaceable(out, ours, what)
        work.parent.mkdir(parents=True, exist_ok=True)
        yield work
        _check_replaceable(out, ours, what)  # hours may have passed
        if out.exists():
            out.rename(old)
        work.rename(out)
        remove(old)


def check_replaceable(out: Path) -> None:
    """Raises ArtifactError where `building` would not replace what is there."""
    _check_replaceable(out.resolve(), is_artifact, "an artifact")


def _check_replaceable(out: Path, ours: Callable[[Path], bool], what: str) -> None:
    if out.exists() and not ours(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(
            f"{out} exists and is not {what}, so it is not replaced: name another folder with --out, or remove it"
        )
