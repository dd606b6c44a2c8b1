"""Reads the tensors of a GGUF, anybody's."""

from pathlib import Path

import gguf

from tierexport.artifact.stored import StoredTensor
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Tensor
from tierexport.model.roles import role_and_layer


def read_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """Every tensor in a GGUF file, anybody's.

    Raises ArtifactError when the file is damaged.
    """
    reader = open_gguf(path)
    found = []
    for entry in reader.tensors:
        shape = tuple(int(size) for size in reversed(entry.shape))
        role, layer = role_and_layer(entry.name, shape)
        found.append(StoredTensor(Tensor(entry.name, role, layer, shape), entry.tensor_type.name, int(entry.n_bytes)))
    return tuple(found)


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Gguf's own reader on a file. Raises ArtifactError when it can't be read."""
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise ArtifactError(f"{path} is not a GGUF file, or is damaged: {error}") from None
