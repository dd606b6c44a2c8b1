"""Artifacts that are open to be judged: their vectors, from the cache or made now.

Vectors are kept under a key of all that makes them: the question asked, the versions of the libraries, and the code of the
format's reader with everything that it imports; what only judges or shows them is not in it.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tierexport.base.digests import file_digest, folder_digests, value_digest
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Encoded
from tierexport.formats import format_named
from tierexport.formats.protocol import Format
from tierexport.model.reference import Question, Reference, answered


@dataclass(frozen=True)
class Judged:
    """An artifact to verify: its format and where it lies, whoever made it."""

    format: str
    path: Path

    @property
    def digest(self) -> str:
        """SHA-256 over its files. Raises ArtifactError when it is not there."""
        if not self.path.exists():
            raise ArtifactError(f"{self.path} is missing")
        return file_digest(self.path) if self.path.is_file() else value_digest(folder_digests(self.path))


def why_not(fmt: Format, device: str) -> str | None:
    """Why a format can't run on a device ("cpu" or "cuda") of this machine, or None when it can."""
    if device == "cpu":
        return None
    import torch

    if not torch.cuda.is_available():
        return "this machine has no CUDA device, or a CPU build of torch"
    return fmt.why_not(device)


class OpenArtifact:
    """An artifact on a device, opened when the first texts are encoded, and once for all of them."""

    def __init__(self, artifact: Judged, device: str, reference: Reference) -> None:
        self.artifact, self.device, self.reference = artifact, device, reference
        self.format = format_named(artifact.format)
        self._reader = self.format.open(artifact.path, device)
        self._digest = functools.cache(lambda: artifact.digest)
        self.code = self.format.reader

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker, it is opened there, which knows where texts are cut, so that fp32 need not be opened for that."""
        known = replace(self.reference.source, max_tokens=self.reference.max_tokens)
        placed = replace(self.artifact, path=self.artifact.path.absolute())
        return OpenArtifact, (placed, self.device, Reference(known))

    def encode(self, name: str, kind: str, texts: Sequence[str]) -> Encoded:
        """Vectors of texts, prompted and cut as the reference's; `name` is what is said of them.

        Raises ArtifactError where the artifact fails.
        """
        what, prompt = f"{self.artifact.format} on {self.device}: {name}", self.reference.prompts[kind]
        workers, gpu = self.reference.workers, self.device == "cuda"
        return answered(self, prompt, texts, workers, lambda done: self.reference.say(f"{what}{done}"), gpu)

    def question(self, prompt: str, texts: Sequence[str]) -> Question:
        """What is asked of the artifact, in full."""
        return {
            "of": "an artifact",
            "format": self.artifact.format,
            "artifact": self._digest(),
            "limit": self.reference.max_tokens,
            "device": self.device,
            "prompt": prompt,
            "texts": list(texts),
        }

    def made(self, texts: Sequence[str], prompt: str, folder: Path) -> Encoded:
        """The vectors, made now and written to a folder."""
        return self._reader.encode(texts, prompt, self.reference.max_tokens, folder)

    def close(self) -> None:
        """Let go of the artifact."""
        self._reader.close()
