"""Vectors of the fp32 model and of artifacts, from the cache or made now.

They are kept under a key of all that makes them: the question asked, the versions of the libraries, and the code of this
module with everything that it imports. Whatever makes vectors is imported here, however indirectly; what only judges or shows
them is not.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tierexport.archive import tools
from tierexport.codebase import digest_of
from tierexport.encode import VectorStore, encode, not_finite, open_encoded, open_model, prompt_for
from tierexport.errors import ArtifactError, SourceError
from tierexport.records import Encoded, Source
from tierexport.verify.readers import open_torchao, read_gguf
from tierexport.workdir import Stages, cache_dir, file_digest, folder_digests, value_digest

LIBRARIES = ("tokenizers", "sentencepiece", "numpy", "mslk")
"""Packages beside those that artifacts depend on which vectors may depend on, where they are installed."""


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


class Reference:
    """The fp32 model, opened on a device when something has to be encoded there that the cache lacks."""

    def __init__(self, source: Source, step: Callable[[str], None]) -> None:
        self.source, self.step = source, step
        self.model = functools.cache(functools.partial(open_model, source))
        self.prompts = {kind: prompt_for(source.prompts, kind) for kind in ("query", "passage")}

    @property
    def max_tokens(self) -> int:
        """Where texts are cut."""
        return self.source.max_tokens or self.model("cpu").max_seq_length or 512

    def encode(self, name: str, kind: str, texts: list[str]) -> Encoded:
        """Vectors of texts of a kind, "query" or "passage", from the cache or made now; `name` is what is said of them.

        Raises SourceError where the model makes NaN or infinity of a text: nothing could be compared with that.
        """
        self.step(f"fp32: {name}")
        prompt = self.prompts[kind]
        found = _kept(
            reference_question(self.source, prompt, texts),
            lambda folder: encode(self.model("cpu"), texts, prompt, VectorStore(folder)),
        )
        if len(bad := not_finite(found)):
            raise SourceError(
                f"{self.source.name}: in fp32 the vectors of {len(bad)} of {len(texts)} texts hold NaN or infinity, of "
                f"{texts[bad[0]][:60]!r} for one: no artifact can be compared with that"
            )
        return found


def reference_question(source: Source, prompt: str, texts: Sequence[str]) -> dict[str, object]:
    """What is asked of the fp32 model, in full: two questions are equal only where the vectors are."""
    return {
        "of": "the fp32 model",
        "model": source.digest,
        "pooling": source.pooling,
        "limit": source.max_tokens,
        "device": "cpu",
        "dtype": "float32",
        "prompt": prompt,
        "texts": list(texts),
    }


def artifact_question(artifact: Judged, device: str, limit: int, prompt: str, texts: Sequence[str]) -> dict[str, object]:
    """What is asked of an artifact on a device, in full."""
    return {
        "of": "an artifact",
        "format": artifact.format,
        "artifact": artifact.digest,
        "limit": limit,
        "device": device,
        "prompt": prompt,
        "texts": list(texts),
    }


def key_of(question: Mapping[str, object]) -> str:
    """The key that the answer to a question is kept under."""
    return value_digest([digest_of(__name__), tools(), _libraries(), question])


@functools.cache
def _libraries() -> dict[str, str | None]:
    return {name: _version(name) for name in LIBRARIES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kept(question: Mapping[str, object], make: Callable[[Path], Encoded]) -> Encoded:
    """Vectors from the cache, or made now and kept there, in a folder that the whole key names."""
    key = key_of(question)
    return open_encoded(Stages(cache_dir() / "vectors").run(key, key, lambda folder: _discard(make(folder))))


def _discard(_: Encoded) -> None:
    """A stage's maker returns nothing: what it wrote is what counts."""


def encode_artifact(artifact: Judged, device: str, reference: Reference, name: str, kind: str, texts: list[str]) -> Encoded:
    """Vectors of texts by an artifact, prompted and cut as the reference's. Raises ArtifactError where it fails."""
    reference.step(f"{artifact.format} on {device}: {name}")
    prompt, limit = reference.prompts[kind], reference.max_tokens
    return _kept(
        artifact_question(artifact, device, limit, prompt, texts),
        lambda folder: read(artifact, device, texts, prompt, limit, folder),
    )


def read(artifact: Judged, device: str, texts: Sequence[str], prompt: str, limit: int, folder: Path) -> Encoded:
    """The same, made now and written to a folder."""
    return opened(artifact, device, prompt, limit)(texts, folder)


def opened(artifact: Judged, device: str, prompt: str, limit: int) -> Callable[[Sequence[str], Path], Encoded]:
    """What encodes texts into a folder, through an artifact that is opened once (a GGUF each time, in a process of its own)."""
    if artifact.format == "gguf":
        return lambda texts, folder: read_gguf(artifact.path, texts, limit, folder, prompt, gpu=device == "cuda")
    with _explained(artifact, device):
        encode_texts = open_torchao(artifact.path, prompt, device)

    def read_with_it(texts: Sequence[str], folder: Path) -> Encoded:
        with _explained(artifact, device):
            return encode_texts(texts, VectorStore(folder))

    return read_with_it


@contextmanager
def _explained(artifact: Judged, device: str) -> Iterator[None]:
    """Turns what torch raises into one message."""
    try:
        yield
    except RuntimeError as error:  # a kernel that refuses, memory that runs out
        raise ArtifactError(f"{artifact.path.name}: torch failed on {device}: {str(error).strip().splitlines()[0]}") from error
