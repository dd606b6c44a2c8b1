"""Opens an artifact as a `SentenceTransformer`, the GGUF included, so that evaluators, mteb and LangChain take it."""

from pathlib import Path
from typing import TYPE_CHECKING

from tierexport.base.errors import ArtifactError
from tierexport.formats import format_named
from tierexport.formats.artifacts import artifacts_at

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load(path: str, device: str = "cpu") -> "SentenceTransformer":
    """See `tierexport.load`."""
    found = artifacts_at(Path(path))
    if len(found) > 1:
        listed = " and ".join(str(place) for _, place in found)
        raise ArtifactError(f"{path} holds {listed}: name one of them")
    ((kind, place),) = found
    return format_named(kind).load(place, device)
