"""Repositories in memory, as git and LFS keep them: every commit holds its whole mapping from paths to files."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal

GITATTRIBUTES = "".join(f"*.{end} filter=lfs diff=lfs merge=lfs -text\n" for end in ("bin", "onnx", "pt", "safetensors", "zip"))
"""What a new repository on the hub puts into LFS, in part; GGUF is not in it."""


@dataclass(frozen=True)
class Blob:
    """A file's bytes, and whether the repository keeps them in LFS."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @cached_property
    def oid(self) -> str:
        """What git calls the thing that it holds: the content, or the pointer to it."""
        held = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0%b" % (len(held), held)).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """Commits by their oid, branches' heads, and LFS objects by their sha256, whether or not a commit has them."""

    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._record(None, "initial commit", {".gitattributes": Blob(GITATTRIBUTES.encode())}, "main")

    def head(self, branch: str = "main") -> Commit:
        return self.commits[self.branches[branch]]

    def tracks(self, path: str, branch: str = "main") -> bool:
        """Whether .gitattributes puts the path into LFS."""
        attributes = self.head(branch).files.get(".gitattributes", Blob(b""))
        patterns = [line.split()[0] for line in attributes.content.decode().splitlines() if "filter=lfs" in line]
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (path, path.rpartition("/")[2]))

    def add(self, changes: Mapping[str, Blob | None], message: str, branch: str = "main") -> Commit:
        """A commit on the branch's head; None deletes. As on the hub, .gitattributes comes to name all that is in LFS."""
        head = self.head(branch)
        files = {path: blob for path, blob in {**head.files, **changes}.items() if blob is not None}
        untracked = [path for path, blob in changes.items() if blob and blob.lfs and not self.tracks(path, branch)]
        if untracked:
            lines = "".join(f"{path} filter=lfs diff=lfs merge=lfs -text\n" for path in untracked)
            files[".gitattributes"] = Blob(files.get(".gitattributes", Blob(b"")).content + lines.encode())
        return self._record(head.oid, message, files, branch)

    def _record(self, parent: str | None, message: str, files: Mapping[str, Blob], branch: str) -> Commit:
        files = dict(sorted(files.items()))
        named = [len(self.commits), parent, message, {path: blob.oid for path, blob in files.items()}]
        commit = Commit(hashlib.sha1(json.dumps(named).encode()).hexdigest(), parent, message, files)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit


@dataclass(frozen=True)
class User:
    name: str
    organizations: tuple[str, ...] = ()
    role: Literal["read", "write"] = "write"

    def owns(self, name: str) -> bool:
        return name.partition("/")[0] in (self.name, *self.organizations)
