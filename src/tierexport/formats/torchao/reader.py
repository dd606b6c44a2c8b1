"""A torchao folder open on a device, to encode texts as its users do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tierexport.base.errors import ArtifactError
from tierexport.base.records import Encoded
from tierexport.formats.torchao.load import load
from tierexport.model.encoder import encode
from tierexport.model.vector_store import VectorStore


class Opened:
    """The folder, loaded once, when the first texts come."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        self._model: Any = None

    def encode(self, texts: Sequence[str], prompt: str, limit: int, folder: Path) -> Encoded:
        """Vectors of texts through sentence-transformers, which cuts them as the folder's own files say."""
        del limit  # the folder states it
        with self._explained():
            self._model = self._model or load(self.path, self.device)
            return encode(self._model, texts, prompt, VectorStore(folder))

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what torch raises into one message."""
        try:
            yield
        except RuntimeError as error:  # a kernel that refuses, memory that runs out
            said = " ".join(str(error).split("\n\n")[0].split())  # the compiler's own words come on the second line
            raise ArtifactError(f"{self.path.name}: torch failed on {self.device}: {said}") from error
