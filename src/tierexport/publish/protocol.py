"""What a place to publish to is: everything that a release asks of one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tierexport.base.digests import file_digest


@dataclass(frozen=True)
class Held:
    """What a place has now: `head` names its state, None where there is no repository yet; `files` are digests by
    path, "sha256:…" or "git:…" (the SHA-1 of git's blob), whichever the hub keeps.
    """

    head: str | None
    files: Mapping[str, str]


class Target(Protocol):
    """A place to publish to: a hub's repository, or a folder."""

    @property
    def model(self) -> str:
        """What a sentence-transformers user names to open what is there."""

    @property
    def download(self) -> str | None:
        """The command that fetches it, or None where there is nothing to fetch."""

    def held(self) -> Held:
        """What is there now. Raises MachineError when that can't be found out."""

    def read(self, path: str, held: Held) -> bytes:
        """A small file as it is in `held`. Raises MachineError when it can't be had."""

    def upload(self, files: Mapping[str, Path], removed: Sequence[str], held: Held, message: str) -> str:
        """Put files there and remove others, by paths in the repository, and say where they can be seen.

        Either all of it happens or nothing, unless the target's own file says otherwise. Raises MachineError, also
        when the place is no longer what `held` says.
        """


def has_digest(path: Path, digest: str | None) -> bool:
    """Whether a file is what a digest of `Held.files` says."""
    kind, _, value = (digest or "").partition(":")
    return value == {"sha256": file_digest, "git": _git_digest}[kind](path) if value else False


def _git_digest(path: Path) -> str:
    """The name that git gives a blob: SHA-1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes(), usedforsecurity=False).hexdigest()
