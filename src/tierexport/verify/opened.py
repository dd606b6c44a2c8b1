"""Artifacts that are open to be judged: their vectors, from the cache or made now.

Vectors are kept under a key of all that makes them: the question asked, the versions of the libraries, and the code of the
format's reader with everything that it imports; what only judges or shows them is not in it.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

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

    def encode(self, name: str, kind: str, texts: list[str]) -> Encoded:
        """Vectors of texts, prompted and cut as the reference's; `name` is what is said of them.

        Raises ArtifactError where the artifact fails.
        """
        self.reference.say(f"{self.artifact.format} on {self.device}: {name}")
        prompt = self.reference.prompts[kind]
        return answered(self.question(prompt, texts), self.format.reader, lambda folder: self.made(texts, prompt, folder))

    def question(self, prompt: str, texts: list[str]) -> Question:
        """What is asked of the artifact, in full."""
        return {
            "of": "an artifact",
            "format": self.artifact.format,
            "artifact": self._digest(),
            "limit": self.reference.max_tokens,
            "device": self.device,
            "prompt": prompt,
            "texts": texts,
        }

    def made(self, texts: list[str], prompt: str, folder: Path) -> Encoded:
        """The vectors, made now and written to a folder."""
        return self._reader.encode(texts, prompt, self.reference.max_tokens, folder)

    def close(self) -> None:
        """Let go of the artifact."""
        self._reader.close()
