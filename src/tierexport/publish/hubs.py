"""Where a verified folder can be published; one file per hub. `Hub` is all that a hub has to do."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tierexport.base.digests import file_digest
from tierexport.base.errors import PublishError
from tierexport.base.hub import is_hub_id
from tierexport.base.paths import expanded


@dataclass(frozen=True)
class Held:
    """What a hub has now: `head` names its state, None where there is no repository yet; `files` are digests by
    path, "sha256:…" or "git:…" (the SHA-1 of git's blob), whichever the hub keeps.
    """

    head: str | None
    files: Mapping[str, str]


class Hub(Protocol):
    """A place to publish to."""

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

        Either all of it happens or nothing, unless the hub's own file says otherwise. Raises MachineError, also
        when the place is no longer what `held` says.
        """


def open_hub(target: str, revision: str | None, private: bool) -> Hub:
    """The hub that "hf:ORG/NAME", "modelscope:ORG/NAME" or "dir:PATH" names. Raises PublishError."""
    kind, _, name = target.partition(":")
    if kind == "dir" and name:
        from tierexport.publish.directory import Directory

        if revision or private:
            raise PublishError(f"--to {target}: a folder has no --revision and is not --private")
        return Directory(expanded(name))
    if kind not in ("hf", "modelscope") or not is_hub_id(name) or "@" in name:
        raise PublishError(f"--to {target!r} has to be hf:ORG/NAME, modelscope:ORG/NAME or dir:PATH")
    if kind == "modelscope":
        from tierexport.publish.modelscope import ModelScope

        return ModelScope(name, revision, private)
    from tierexport.publish.huggingface import HuggingFace

    return HuggingFace(name, revision, private)


def same(path: Path, digest: str | None) -> bool:
    """Whether a file is what a hub's digest says."""
    kind, _, value = (digest or "").partition(":")
    return value == {"sha256": file_digest, "git": _git_digest}[kind](path) if value else False


def _git_digest(path: Path) -> str:
    """The name that git gives a blob: SHA-1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % path.stat().st_size + path.read_bytes(), usedforsecurity=False).hexdigest()
